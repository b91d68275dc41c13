"""A server's private folder, and the clearing of those whose owner was killed.

Each server keeps its rendered models, backends and log in a folder of its own. Its owner (the
process that supervises it) holds a lock on a file in it. The kernel lets go of the lock when the
owner dies, however it dies, so that what is left behind can be told from what is in use.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from nima_build.paths import locked_folder, temporary_folder
from nima_build.repository import MODELS
from nima_build.server._install import ServerLost
from nima_build.server._mps import MPS_FOLDER, end_servers

TEMPORARY_FOLDER = "tmp"
"""Of the server's processes, in its private folder."""
_PREFIX = "nima-serve-"
_LOCK = "owner.lock"
_SHARED_MEMORY = Path("/dev/shm")
_GRACE_SECONDS = 5.0
_POLL_SECONDS = 0.05
# All that a private folder may hold: what has the name of one and holds more is somebody's.
_CONTENTS = re.compile(
    r"\.owner\.lock|models|\.models\.staged|backends|gate(\.\d+)?|\.gate\.new|tritonserver\.log"
    rf"|{TEMPORARY_FOLDER}|{MPS_FOLDER}"
)
_RANDOM_NAME = re.compile(rf"{_PREFIX}[a-z0-9_]{{8}}")
# A folder gets its lock at once; one that has lain without for so long will get none.
_FORGOTTEN_SECONDS = 3600.0


class PrivateFolder:
    """A new folder in the temporary directory, locked until :meth:`remove` or the owner's end.

    Attributes:
        path: the folder.
        shm_prefix: begins the name of every shared-memory file of its server, and of no other's.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=temporary_folder()))
        self.shm_prefix = f"nima_{uuid.uuid4().hex[:12]}_"
        # Locked before it has its name, so that nobody finds it without its lock.
        hidden = self.path / f".{_LOCK}"
        self._lock = hidden.open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._lock.write(self.shm_prefix)
        self._lock.flush()
        hidden.rename(self.path / _LOCK)
        # systemd's cleaner of /tmp passes over a folder that is locked, with all that lies in it;
        # nobody reads the files of a server that runs, so that they look forgotten after ten days.
        self._folder: int | None = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._folder, fcntl.LOCK_SH)

    def remove(self) -> None:
        """Delete the folder with what is in it; idempotent."""
        _remove(self.path)
        self._lock.close()
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None


def require_intact(folder: Path) -> None:
    """Refuse a private folder from which a cleaner of temporary files has taken something.

    Raises:
        ServerLost: models or backends are gone.
    """
    needed = [folder / "models" / model / "config.pbtxt" for model in MODELS]
    for path in (*needed, folder / "backends" / "python"):
        if not path.exists():
            raise ServerLost(
                f"{path} was deleted under the running server: start it again, and keep the "
                f"cleaner of {folder.parent} away from {_PREFIX}* (or set TMPDIR)"
            )


def close_shared_memory(prefix: str) -> None:
    """Leave the shared-memory files of one server, photos among them, to its own user.

    The Python backend makes them readable by everybody, whatever the umask.
    """
    for file in _SHARED_MEMORY.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # it is gone, or somebody else's
            file.chmod(0o600)


def remove_shared_memory(prefix: str) -> None:
    """Remove the shared-memory files of one server."""
    for left in _SHARED_MEMORY.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # somebody else's: everybody may write there
            left.unlink()


def clear_leftovers() -> list[Path]:
    """End and remove what killed owners left: processes, shared memory, folders; all this user's.

    A tritonserver gets SIGTERM from the kernel when its owner dies, and ends by itself in seconds;
    one that does not (it hangs, it is stopped) is killed here, and its ports are free again.

    Returns:
        The folders removed.
    """
    cleared = []
    for folder in sorted(temporary_folder().glob(f"{_PREFIX}*")):
        # In use, of another kind, or gone meanwhile: let it be.
        with contextlib.suppress(OSError):
            # One look: between two, somebody else could put a link to a folder of ours there.
            entry = folder.lstat()
            if not stat.S_ISDIR(entry.st_mode) or entry.st_uid != os.geteuid():
                continue
            try:
                lock = (folder / _LOCK).open()
            except FileNotFoundError:
                if not _is_forgotten(folder):
                    continue
                lock = None
            with lock or contextlib.nullcontext():
                prefix = ""
                if lock is not None:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    prefix = lock.read()
                _end_processes_of(folder)
                end_servers(folder / MPS_FOLDER)
                if prefix.startswith("nima_"):
                    remove_shared_memory(prefix)
                if _remove(folder):
                    cleared.append(folder)
    return cleared


def _is_forgotten(folder: Path) -> bool:
    """Whether a folder without the file of its lock is one of ours that nobody uses or makes."""
    if not _RANDOM_NAME.fullmatch(folder.name):
        return False
    if not all(_CONTENTS.fullmatch(entry.name) for entry in folder.iterdir()):
        return False
    if time.time() - folder.stat().st_mtime < _FORGOTTEN_SECONDS:
        return False
    # A cleaner may have taken the file from under a server: the folder itself is locked then.
    with locked_folder(folder):
        return True


def _remove(folder: Path) -> bool:
    """Delete a folder, the file of its lock last: by it the next start finds what is left.

    Returns:
        Whether all of it is gone.
    """
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != _LOCK:
                with contextlib.suppress(OSError):
                    entry.unlink()
        if {entry.name for entry in folder.iterdir()} <= {_LOCK}:
            (folder / _LOCK).unlink(missing_ok=True)
            folder.rmdir()
    return not folder.exists()


def _end_processes_of(folder: Path) -> None:
    import psutil

    deadline = time.monotonic() + _GRACE_SECONDS
    while left := _processes_of(folder):
        if time.monotonic() > deadline:
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):  # it ended just now
                    process.kill()
            psutil.wait_procs(left, timeout=_GRACE_SECONDS)
            return
        time.sleep(_POLL_SECONDS)


def _processes_of(folder: Path) -> list[Any]:
    """Processes of this user that were started over the folder: tritonserver and its stubs."""
    import psutil

    found = []
    for process in psutil.process_iter(["uids", "cmdline", "status"]):
        uids, command = process.info["uids"], process.info["cmdline"]
        if (
            uids
            and uids.real == os.getuid()
            and process.info["status"] != psutil.STATUS_ZOMBIE
            and any(f"{folder}/" in argument for argument in command or ())
            and "triton" in Path(command[0]).name
        ):
            found.append(process)
    return found
