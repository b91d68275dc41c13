"""A server's private folder, and the clearing of those whose owner was killed.

Each server keeps its rendered models, backends and log in a folder of its own. Its owner (the
process that supervises it) holds a lock on a file in it. The kernel lets go of the lock when the
owner dies, however it dies, so that what is left behind can be told from what is in use.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

_PREFIX = "nima-serve-"
_LOCK = "owner.lock"
_SHARED_MEMORY = Path("/dev/shm")
_GRACE_SECONDS = 5.0
_POLL_SECONDS = 0.05


class PrivateFolder:
    """A new folder in the temporary directory, locked until :meth:`remove` or the owner's end.

    Attributes:
        path: the folder.
        shm_prefix: begins the name of every shared-memory file of its server, and of no other's.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
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
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None


def remove_shared_memory(prefix: str) -> None:
    """Remove the shared-memory files of one server."""
    for left in _SHARED_MEMORY.glob(f"{prefix}*"):
        left.unlink(missing_ok=True)


def clear_leftovers() -> list[Path]:
    """End and remove what killed owners left: processes, shared memory, folders; all this user's.

    A tritonserver gets SIGTERM from the kernel when its owner dies, and ends by itself in seconds;
    one that does not (it hangs, it is stopped) is killed here, and its ports are free again.

    Returns:
        The folders removed.
    """
    cleared = []
    for folder in sorted(Path(tempfile.gettempdir()).glob(f"{_PREFIX}*")):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            with (folder / _LOCK).open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                prefix = lock.read()
                _end_processes_of(folder)
                if prefix.startswith("nima_"):
                    remove_shared_memory(prefix)
                shutil.rmtree(folder, ignore_errors=True)
                cleared.append(folder)
        except OSError:
            # In use, of another kind, or gone meanwhile.
            continue
    return cleared


def _end_processes_of(folder: Path) -> None:
    import psutil

    deadline = time.monotonic() + _GRACE_SECONDS
    while left := _processes_of(folder):
        if time.monotonic() > deadline:
            for process in left:
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
