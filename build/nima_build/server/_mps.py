"""NVIDIA MPS: the processes of one server share one context of the GPU.

Without it decoders, networks and tritonserver take turns on the GPU in slices of time, which costs
a third of the throughput and more (benchmarks/NOTES.md, entry 33). The daemon is this server's own:
its pipes lie in the private folder, so that no other program joins it, and it ends with the server.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from nima_build.processes import end_with_parent
from nima_build.server._arguments import NOBODYS_FOLDER, environment
from nima_build.server._install import ServerError
from nima_client._os_errors import reason
from nima_client._signals import held_back

MPS_FOLDER = "mps"
"""Of the pipes and logs, in the private folder of a server."""
_CONTROL = "nvidia-cuda-mps-control"
_PIPES, _LOGS, _VISIBLE = (
    "CUDA_MPS_PIPE_DIRECTORY",
    "CUDA_MPS_LOG_DIRECTORY",
    "CUDA_VISIBLE_DEVICES",
)
_COMMAND_SECONDS = 5.0
_START_SECONDS = 10.0
_JOIN_SECONDS = 60.0
_POLL_SECONDS = 0.05
# Makes a context, as every process of the server will.
_JOIN = """
from cuda.bindings import runtime
(status,) = runtime.cudaFree(0)
if int(status) != 0:
    raise SystemExit(f"CUDA says {status.name}")
"""


class MpsError(RuntimeError):
    """MPS cannot be had here; says why."""


class Mps:
    """The MPS of one server: a daemon of its own, one that was there before, or none.

    Args:
        wanted: None has one where that is possible, True refuses to go without, False has none.

    Attributes:
        note: what the last :meth:`launch` found, in a few words.
    """

    def __init__(self, wanted: bool | None) -> None:
        self._wanted = wanted
        self._process: subprocess.Popen[bytes] | None = None
        self._environment: dict[str, str] = {}
        self._servers: list[int] = []
        self._given_up = wanted is False
        self._worked = False
        self.note = "without NVIDIA MPS"

    def launch(self, folder: Path, uuids: Sequence[str] = ()) -> Mapping[str, str]:
        """Start the daemon, and see that a CUDA program can join it.

        Args:
            folder: the server's private one.
            uuids: of the GPUs that ``CUDA_VISIBLE_DEVICES`` lets programs see, in its order.

        Returns:
            What to add to the environment of tritonserver.

        Raises:
            ServerError: it is wanted and cannot be had.
        """
        if self._given_up:
            return {}
        try:
            if running_elsewhere():
                self.note = "with the NVIDIA MPS that was running"
                return {}
            self._start(folder / MPS_FOLDER, uuids)
        except MpsError as error:
            self.end()
            if self._wanted:
                raise ServerError(f"NVIDIA MPS cannot be had: {error}") from None
            # What never worked would cost each restart as much again.
            self._given_up = not self._worked
            self.note = f"without NVIDIA MPS: {error}"
            return {}
        self._worked, self.note = True, "with NVIDIA MPS"
        return self._environment

    def defect(self) -> str | None:
        """What is wrong with what was started, daemon and server; None where nothing is."""
        if self._process is None:
            return None
        if self._process.poll() is not None:
            return f"the daemon of NVIDIA MPS ended with status {self._process.returncode}"
        if gone := [pid for pid in self._servers if not is_there(pid)]:
            return f"the server of NVIDIA MPS (process {gone[0]}) is gone"
        return None

    def end(self) -> None:
        """End the daemon and its server; tritonserver and its stubs have ended before."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            # By its own command, since it ends its server too, which is in no group of ours.
            with contextlib.suppress(MpsError):
                _tell("quit", self._environment)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_COMMAND_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        end_servers(Path(self._environment[_PIPES]))

    def _start(self, folder: Path, uuids: Sequence[str]) -> None:
        control = shutil.which(_CONTROL)
        if control is None:
            raise MpsError(f"{_CONTROL}, which comes with the driver, is not on PATH")
        shutil.rmtree(folder, ignore_errors=True)
        logs = folder / "log"
        logs.mkdir(parents=True)
        self._environment = {_PIPES: str(folder), _LOGS: str(logs)}
        visible = os.environ.get(_VISIBLE)
        if visible and "MIG-" not in visible:
            # Numbers would be counted twice, by the daemon and by those who join it.
            self._environment[_VISIBLE] = ",".join(uuids)
        try:
            with held_back():
                self._process = subprocess.Popen(
                    [control, "-f"],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env={**os.environ, **self._environment},
                    start_new_session=True,
                    preexec_fn=end_with_parent,
                )
        except OSError as error:
            raise MpsError(f"{control} cannot be started: {error.strerror}") from None
        self._wait_listening(logs / "control.log")
        self._join()

    def _wait_listening(self, log: Path) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(MpsError):
                _tell("get_server_list", self._environment)
                return
            time.sleep(_POLL_SECONDS)
        status = self._process.poll()
        what = "does not listen" if status is None else f"ended with status {status}"
        lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
        raise MpsError(": ".join([f"{_CONTROL} {what}", *lines[-1:]]))

    def _join(self) -> None:
        try:
            joined = subprocess.run(
                [sys.executable, "-c", _JOIN],
                env={**environment(), **self._environment},
                cwd=NOBODYS_FOLDER,
                capture_output=True,
                text=True,
                timeout=_JOIN_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise MpsError(f"a CUDA program did not join it in {_JOIN_SECONDS:g} s") from None
        if joined.returncode != 0:
            reason = (joined.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise MpsError(f"a CUDA program cannot join it: {reason}")
        # Without a daemon that it knows a program goes its own way, and says nothing.
        servers = _tell("get_server_list", self._environment).split()
        if not servers:
            raise MpsError("CUDA programs do not join it")
        pids = [int(pid) for pid in servers if pid.isdecimal()]
        self._servers = [pid for pid in pids if is_there(pid)]


def running_elsewhere() -> bool:
    """Whether a daemon runs that every CUDA program of this environment joins by itself."""
    try:
        _tell("get_server_list", {})
    except MpsError:
        return False
    return True


def is_there(pid: int) -> bool:
    """Whether a process of this number runs, whoever has started it."""
    return Path(f"/proc/{pid}").exists()


def end_servers(pipes: Path) -> None:
    """Kill what is left of the MPS whose pipes lie in a folder: its processes do not name it."""
    import psutil

    left = []
    for process in psutil.process_iter(["name"]):
        # The kernel cuts the names after 15 characters.
        if not (process.info["name"] or "").startswith("nvidia-cuda-mps"):
            continue
        with contextlib.suppress(psutil.Error):  # it ended just now, or is somebody else's
            if process.environ().get(_PIPES) == str(pipes):
                process.kill()
                left.append(process)
    psutil.wait_procs(left, timeout=_COMMAND_SECONDS)


def _tell(command: str, environment: Mapping[str, str]) -> str:
    """One command to the daemon; its answer.

    Raises:
        MpsError: there is no daemon, or it does not answer.
    """
    try:
        done = subprocess.run(
            [_CONTROL],
            input=f"{command}\n",
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MpsError(f"{_CONTROL}: {reason(error)}") from None
    if done.returncode != 0:
        raise MpsError(f"{_CONTROL} does not answer (status {done.returncode})")
    return done.stdout
