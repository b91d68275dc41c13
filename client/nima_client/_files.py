"""Files that a reader finds whole, the old one or the new one, and their SHA-256.

The one home of it for all three packages.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

_BLOCK = 1 << 20


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, as 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def atomic_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file that takes its place only when it has been written whole and is on the disk.

    Whatever goes wrong (an exception, a full disk, a kill), the previous file stays as it was.

    Args:
        path: where it goes; missing folders are made.
        mode: ``"w"`` (UTF-8, newlines as written) or ``"wb"``.

    Raises:
        OSError: it could not be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
        with os.fdopen(descriptor, mode, **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fsync(file.fileno())
        # As open() would have made it; mkstemp's 0600 would shut colleagues out.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` by way of :func:`atomic_file`."""
    with atomic_file(path, "wb") as file:
        file.write(data)


def write_together(files: Mapping[Path, bytes]) -> None:
    """Replace files that belong together: no disk can run full between one and the next.

    All of them are on the disk under temporary names before the first is renamed. The renames
    follow the order given, so that what names the others by their hash goes last.

    Raises:
        OSError: a file could not be written; every previous one is still in place.
    """
    with ExitStack() as stack:
        # Left in reverse order, which is when each takes its place.
        for path, data in reversed(list(files.items())):
            file = stack.enter_context(atomic_file(path, "wb"))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
