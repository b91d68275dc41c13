"""Where the bundled checkpoint lies in a checkout, and temporary files on this machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

BUNDLED_CHECKPOINT = (
    Path(__file__).resolve().parents[2] / "training" / "checkpoints" / "nima_mobilenet"
)
"""The checkpoint whose export is committed; absent in an installed wheel."""

# Triton and PyTorch start commands by a shell, or split them as one does, with paths not quoted.
_PLAIN_PATH = re.compile(r"[\w./-]+", re.ASCII)

# One that is being made is younger when it gets its lock.
_LOCKED_SECONDS = 60.0


def temporary_folder() -> Path:
    """Where temporary files may lie: ``TMPDIR``, or ``/tmp`` where a shell would split that."""
    folder = tempfile.gettempdir()
    return Path(folder if is_plain(folder) else "/tmp")


@contextlib.contextmanager
def own_folder(prefix: str, content: str) -> Iterator[Path]:
    """A temporary folder, removed at the end; before it, what killed processes left of theirs.

    Args:
        prefix: begins its name, and those of the others.
        content: the one file that will be in it; what holds anything else is somebody's.
    """
    for left in temporary_folder().glob(f"{prefix}????????"):
        # In use, somebody else's, or gone meanwhile: let it be.
        with contextlib.suppress(OSError), locked_folder(left) as entry:
            forgotten = time.time() - entry.st_mtime > _LOCKED_SECONDS
            ours = {path.name for path in left.iterdir()} <= {content}
            if entry.st_uid == os.geteuid() and forgotten and ours:
                shutil.rmtree(left, ignore_errors=True)
    with (
        tempfile.TemporaryDirectory(prefix=prefix, dir=temporary_folder()) as folder,
        locked_folder(Path(folder)),
    ):
        yield Path(folder)


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[os.stat_result]:
    """Within it no other process has a lock on the folder; gives what the system knows of it.

    Raises:
        OSError: another has one, or it is gone, or is no folder but a link to one.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield os.fstat(descriptor)
    finally:
        os.close(descriptor)


def is_plain(path: str) -> bool:
    """Whether a path is one word to a shell, as it stands."""
    return _PLAIN_PATH.fullmatch(path) is not None
