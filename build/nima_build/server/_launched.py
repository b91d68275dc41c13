"""One tritonserver process after another over one rendered repository: launched, watched, ended."""

from __future__ import annotations

import secrets
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from nima_build.gpu import Gpu, visible_gpus
from nima_build.server._arguments import command
from nima_build.server._install import ServerCrashed, ServerError
from nima_build.server._log import last_errors
from nima_build.server._mps import Mps
from nima_build.server._options import ServerOptions
from nima_build.server._ports import Ports, require_free
from nima_build.server._private import (
    TEMPORARY_FOLDER,
    PrivateFolder,
    close_shared_memory,
    remove_shared_memory,
    require_intact,
)
from nima_build.server._probe import Probe
from nima_build.server._process import ask_to_end, begin_group, kill_group, wait_ready
from nima_build.server._stubs import StubWatch, stub_pids
from nima_client._files import naming_full
from nima_client._gate import create_gate
from nima_client._os_errors import in_words
from nima_client._signals import held_back

_CRASHES_WHILE_STARTING = 2


class LaunchedServer:
    """The processes of :class:`EmbeddedServer`, in a private folder that it makes and fills.

    Args:
        options: ports, limits, log.
    """

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self._private: PrivateFolder | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._admin_token = self.options.admin_token or secrets.token_urlsafe(24)
        self._ports: Ports | None = None
        self._log_start = 0
        self._stubs = StubWatch(self.stub_pids)
        self._gpus: Mapping[str, Gpu] = {}
        self.mps = Mps(self.options.mps if self.options.device == "cuda" else False)

    @property
    def grpc_url(self) -> str:
        """``host:port`` for :class:`nima_client.NimaClient`."""
        return f"{self.options.host}:{self._chosen_ports.grpc}"

    @property
    def http_url(self) -> str:
        """``host:port`` of the HTTP endpoint."""
        return f"{self.options.host}:{self._chosen_ports.http}"

    @property
    def metrics_url(self) -> str:
        """``host:port`` of the Prometheus endpoint."""
        return f"{self.options.host}:{self._chosen_ports.metrics}"

    @property
    def _chosen_ports(self) -> Ports:
        if self._ports is None:
            raise ServerError("the server has not been started")
        return self._ports

    @property
    def _listened_ports(self) -> list[int]:
        return self._chosen_ports.listened(self.options.serves_http)

    @property
    def pid(self) -> int | None:
        """Process id of tritonserver, None when it does not run."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def log_path(self) -> Path:
        """Where tritonserver's log goes."""
        if self.options.log_file is not None:
            return self.options.log_file
        return self._folder / "tritonserver.log"

    @property
    def shm_prefix(self) -> str:
        """Begins the names of this server's files in ``/dev/shm``, and of no other's."""
        if self._private is None:
            raise ServerError("the server has not been started")
        return self._private.shm_prefix

    @property
    def _folder(self) -> Path:
        if self._private is None:
            raise ServerError("the server has not been started")
        return self._private.path

    def probe(self, timeout: float) -> Probe:
        """A probe of this server that waits ``timeout`` seconds for an answer."""
        return Probe(self.grpc_url, timeout, self.options.tls)

    def stub_pids(self) -> frozenset[int]:
        """Process ids of the Python backend's stubs, read from the process table."""
        return stub_pids(self.pid)

    def defect(self) -> str | None:
        """What is visibly wrong with the processes (server or stub gone); None when all run."""
        process = self._process  # another thread may end it meanwhile
        if process is None:
            return "tritonserver does not run"
        code = process.poll()
        if code is not None:
            return f"tritonserver ended with status {code}"
        return self._stubs.defect() or self.mps.defect()

    def _launch_patiently(self) -> None:
        """Launch, again where tritonserver crashed: 2.51's Python backend aborts now and then when
        it loads models on a machine that is short of CPU (``boost::interprocess::lock_exception``).
        """
        for _ in range(_CRASHES_WHILE_STARTING):
            try:
                return self.launch()
            except ServerCrashed:
                continue
        self.launch()

    def launch(self) -> None:
        """Start the process over the rendered repository, on the ports chosen once.

        Raises:
            ServerLost: the private folder is gone.
            ServerError: it ended, or no inference answered within ``start_timeout``, or the machine
                is short of something (disk, memory, files); nothing is left running.
        """
        require_intact(self._folder)
        try:
            with naming_full(self._folder):
                self._launch()
        except OSError as error:
            raise ServerError(f"cannot start tritonserver: {in_words(error)}") from error

    def _launch(self) -> None:
        require_free(self.options.host, self._listened_ports)
        try:
            if self.options.log_file is not None:
                self.log_path.parent.mkdir(parents=True, exist_ok=True)
            log = self.log_path.open("ab")
        except OSError as error:
            raise ServerError(f"cannot write the log {self.log_path}: {error.strerror}") from None
        try:
            if self.options.device == "cuda":
                self._gpus = self._gpus or visible_gpus()
            added = {
                **self.mps.launch(self._folder, list(self._gpus)),
                "TMPDIR": str(self._temporary_folder()),
            }
            with log, held_back():
                # A new one for new processes: what the old had between the steps went with them.
                create_gate(self._folder / "gate")
                self._log_start = log.tell()
                self._process = begin_group(self._command(), log, added)
            self._wait_ready()
            close_shared_memory(self.shm_prefix)
        except BaseException:
            # Were it to come up later, nobody would know its stubs.
            self.end_processes(grace=0)
            raise
        self._stubs.launched(self._folder / "models")

    def _temporary_folder(self) -> Path:
        """Of the processes, empty: PyTorch leaves a copy of its package there when it is killed."""
        folder = self._folder / TEMPORARY_FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def _command(self) -> list[str]:
        assert self._private is not None
        return command(
            self.options, self._private.path, self._chosen_ports, self._admin_token,
            self._private.shm_prefix, len(self._gpus),
        )  # fmt: skip

    def _wait_ready(self) -> None:
        assert self._process is not None
        patience = self.options.patience
        probe = self.probe(patience)
        wait_ready(self._process, self._listened_ports, probe, patience, self.log_errors)

    def log_errors(self, lines: int = 12) -> str:
        """The last errors in tritonserver's log; its last lines where it holds none."""
        try:
            return last_errors(self.log_path, self._log_start, lines)
        except ServerError:  # it has no log yet
            return ""

    def end_processes(self, grace: float) -> None:
        """End tritonserver and its stubs, and remove the shared memory they leave.

        Args:
            grace: seconds between SIGTERM and SIGKILL; 0 kills at once.
        """
        process = self._process
        try:
            self._process = None
            self._gpus = {}  # one may be lost until the next launch
            if process is not None:
                ask_to_end(process, grace)
        finally:
            with held_back():
                if process is not None:
                    kill_group(process)
                self.mps.end()
                self._stubs.forget()
                if self._private is not None:
                    remove_shared_memory(self._private.shm_prefix)
