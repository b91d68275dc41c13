"""Files that a reader finds whole, the old one or the new one, and their SHA-256.

The one home of it for all three packages.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from nima_client._signals import held_back

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

_BLOCK = 1 << 20
_UNFINISHED = ".partial"
_TRIES = 100


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, as 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def is_stream(path: Path) -> bool:
    """Whether something is there that can be written to but not replaced: a device, a pipe."""
    # The path as given exists, if one reaches anything: a pipe has none behind /dev/stdout.
    return path.exists() and not Path(os.path.realpath(path)).is_file()


def make_parent(path: Path) -> None:
    """Make the folder that a file goes into, and those that this one needs.

    Raises:
        OSError: it cannot be made; or the path leads out (``..``) of a folder that is not there,
            where making folders would put the file where nobody looks for it.
    """
    for place, part in enumerate(path.parts):
        missing = Path(*path.parts[:place])
        if part == ".." and not missing.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(missing))
    path.parent.mkdir(parents=True, exist_ok=True)


def check_output(path: Path) -> None:
    """Refuse a file that could not be written; makes the folder that it goes into.

    For before the minutes of work whose outcome is to go there.

    Raises:
        OSError: it is a folder, or no file can be made where it goes.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if is_stream(path):
        return
    final = _final(path)
    with _naming(path), tempfile.TemporaryFile(dir=final.parent):
        pass


def check_output_folder(folder: Path) -> None:
    """Refuse a folder that no file could be put into, before the work; it need not be there yet.

    Raises:
        OSError: it is no folder or may not be written to; or none can be made there.
    """
    there = folder
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(f"{there} is not a folder: choose another place than {folder}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{there} may not be written to: choose another place than {folder}")


def _final(path: Path) -> Path:
    """Where a file goes, through links, and its folder is there."""
    make_parent(path)
    with _naming(path):  # in a folder that was deleted, the system names none
        final = Path(os.path.realpath(path))
    final.parent.mkdir(parents=True, exist_ok=True)  # of a link to a folder that is not there yet
    return final


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """An error on a temporary file names what was asked for, not a name nobody has heard of."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


@contextmanager
def naming_full(path: Path) -> Iterator[None]:
    """Of a disk that is full, an error of writing names no file: let it name this one."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def atomic_file(path: Path, mode: str = "w", *, one_of_many: bool = False) -> Iterator[IO[Any]]:
    """A file that takes its place only when it has been written whole and is on the disk.

    Whatever goes wrong (an exception, a full disk, a kill), the previous file stays as it was. A
    link stays a link to what is replaced; the new file has the mode of the old one. What is no
    regular file (``/dev/stdout``, a pipe) cannot be replaced: it is written to as it stands.
    Afterwards no power cut brings the previous file back, where the file system flushes folders.

    Args:
        path: where it goes; missing folders are made.
        mode: ``"w"`` (UTF-8, newlines as written) or ``"wb"``.
        one_of_many: whoever writes many small files flushes their folder (:func:`flush_folder`)
            once, behind the last: after each it took 1.6 times as long.

    Raises:
        OSError: it could not be written.
    """
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    if is_stream(path):
        with path.open(mode, **text) as file:  # type: ignore[call-overload]
            yield file
        return
    final = _final(path)
    name = ""
    try:
        with ExitStack() as locked:
            with held_back(), _naming(path):
                descriptor, name = _new_file(final)
                if fcntl is not None:  # Windows renames no open file
                    locked.callback(os.close, os.dup(descriptor))
                file = os.fdopen(descriptor, mode, **text)  # type: ignore[call-overload]
            with naming_full(path), file:
                yield file
                _to_disk(file)
            with held_back():
                os.chmod(name, _mode(final))
                os.replace(name, final)
                name = ""
        if not one_of_many:
            flush_folder(final.parent)
    finally:
        if name:
            os.unlink(name)


def _hidden(final: Path) -> str:
    """What the names of its temporary files begin with."""
    # Cut: a file may have the longest name that the disk takes.
    return f".{final.name[:32]}."


def _new_file(final: Path) -> tuple[int, str]:
    """A temporary file, locked until its writer closes its last descriptor or dies, however.

    Returns:
        Its descriptor and its name.
    """
    for _ in range(_TRIES):
        descriptor, name = tempfile.mkstemp(
            suffix=_UNFINISHED, prefix=_hidden(final), dir=final.parent
        )
        if _lock(descriptor, name):
            return descriptor, name
        # Another process took it for what a killed one had left, in the moment before the lock.
        os.close(descriptor)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
    raise BlockingIOError(errno.EAGAIN, "other processes remove every temporary file", str(final))


def _lock(descriptor: int, name: str) -> bool:
    """Lock a new file, where there are locks; False if :func:`remove_unfinished` came before."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks, where nothing is removed either
        return True
    return os.path.exists(name)


def remove_unfinished(path: Path) -> None:
    """Remove what a killed process had half written to ``path``, and nobody writes any more."""
    final = Path(os.path.realpath(path))
    pattern = f"{glob.escape(_hidden(final))}????????{_UNFINISHED}"
    for left in final.parent.glob(pattern) if fcntl else ():
        # In use, gone meanwhile, or not ours to delete: let it be.
        with contextlib.suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def flush(path: Path) -> None:
    """Have what was written to a file, or the names in a folder, on the disk.

    Raises:
        OSError: it could not be flushed, or opened for reading.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(folder: Path) -> None:
    """As :func:`flush`, where the file system flushes folders: Windows and some others do not."""
    with contextlib.suppress(OSError):
        flush(folder)


def _to_disk(file: IO[Any]) -> None:
    file.flush()
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # a pipe has no disk
        os.fsync(file.fileno())


def _mode(path: Path) -> int:
    """Of the file that is there, or what open() would give; mkstemp's 0600 shuts colleagues out."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        return 0o666 & ~umask


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` by way of :func:`atomic_file`."""
    with atomic_file(path, "wb") as file:
        file.write(data)


def write_together(files: Mapping[Path, bytes]) -> None:
    """Replace files that belong together: no disk can run full between one and the next.

    All of them are on the disk under temporary names before the first is renamed, and Ctrl-C waits
    for the last. The renames follow the order given, so that what names the others by their hash
    goes last. What a killed call left goes first, to make room. Links, modes and what is no regular
    file: as with :func:`atomic_file`.

    Raises:
        OSError: a file could not be written; every previous one is still in place.
    """
    for path in files:
        remove_unfinished(path)
    with ExitStack() as renames, ExitStack() as stack:
        # Left in reverse order, which is when each takes its place.
        for path, data in reversed(list(files.items())):
            file = stack.enter_context(atomic_file(path, "wb"))
            file.write(data)
            _to_disk(file)
        renames.enter_context(held_back())
