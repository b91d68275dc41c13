"""Where the bundled checkpoint lies in a checkout, and temporary files on this machine."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

BUNDLED_CHECKPOINT = (
    Path(__file__).resolve().parents[2] / "training" / "checkpoints" / "nima_mobilenet"
)
"""The checkpoint whose export is committed; absent in an installed wheel."""

# Triton and PyTorch start commands by a shell, or split them as one does, with paths not quoted.
_PLAIN_PATH = re.compile(r"[\w./-]+", re.ASCII)


def temporary_folder() -> Path:
    """Where temporary files may lie: ``TMPDIR``, or ``/tmp`` where a shell would split that."""
    folder = tempfile.gettempdir()
    return Path(folder if is_plain(folder) else "/tmp")


def is_plain(path: str) -> bool:
    """Whether a path is one word to a shell, as it stands."""
    return _PLAIN_PATH.fullmatch(path) is not None
