"""What tritonserver's log says of a failure."""

from __future__ import annotations

import os
import re
from pathlib import Path

# Severity E in tritonserver's own lines (without CUDA, two of them are always there), Python
# tracebacks of the models, and the last word of a server that gives up or aborts.
_ERROR = re.compile(
    r"Z E \d+ (?!.*(?:CudaDriver|CUDA driver))|Error: |^error: |^terminate called|^  what\(\): "
)


def last_errors(path: Path, start: int, lines: int) -> str:
    """The last errors in a log; its last lines where it holds none, nothing where there is no log.

    Args:
        path: of the log.
        start: bytes that earlier runs have written.
        lines: so many at most, each cut at 400 characters.
    """
    try:
        with path.open("rb") as file:
            # A log that is kept also holds earlier runs; one that was rotated begins anew.
            file.seek(start if os.fstat(file.fileno()).st_size >= start else 0)
            log = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    errors = [line for line in log if _ERROR.search(line)]
    return "\n".join(line[:400] for line in (errors or log)[-lines:])
