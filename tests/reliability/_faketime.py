"""Where libfaketime is, and the environment that has a program's wall clock follow a file."""

from __future__ import annotations

import os
from pathlib import Path

LIBRARY = next(
    (
        str(path)
        for folder in ("/usr/lib", "/usr/lib64", "/usr/local/lib")
        for path in Path(folder).glob("**/libfaketimeMT.so.1")
    ),
    None,
)


def environment(clock: Path) -> dict[str, str]:
    """The environment of this process, with the clock that ``clock`` says ("+3600": an hour on)."""
    return {
        **os.environ,
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
