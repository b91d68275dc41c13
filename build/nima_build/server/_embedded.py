"""One tritonserver process: rendered repository, free loopback ports, readiness, clean end."""

from __future__ import annotations

import secrets
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from nima_build.cores import available_cores
from nima_build.metadata import ModelMetadata
from nima_build.rendering import RenderOptions, cpu_instances, render
from nima_build.repository import default_repository
from nima_build.server._arguments import command
from nima_build.server._gpu import check_gpu
from nima_build.server._install import ServerCrashed, ServerError, check_numpy, lay_out_backends
from nima_build.server._log import last_errors
from nima_build.server._mps import Mps
from nima_build.server._options import ServerOptions
from nima_build.server._ports import Ports, require_free
from nima_build.server._private import (
    PrivateFolder,
    clear_leftovers,
    close_shared_memory,
    remove_shared_memory,
    require_intact,
)
from nima_build.server._probe import Probe
from nima_build.server._process import ask_to_end, begin_group, kill_group, wait_ready
from nima_build.server._rollout import Repository, Rollout, RolloutError
from nima_build.server._stubs import StubWatch, stub_pids
from nima_client._gate import create_gate
from nima_client._signals import held_back
from nima_client.contract import NETWORK_MODEL, PREPROCESS_MODEL

_CRASHES_WHILE_STARTING = 2


class EmbeddedServer:
    """A real tritonserver on this machine, of the profile ``embedded`` or ``embedded-gpu``.

    Use as a context manager: entering renders the repository, starts the process in a process
    group of its own and returns once an inference has answered; leaving ends it. Start it from a
    thread that lives as long as the server should: the kernel ends the server with that thread.

    Args:
        options: ports, limits, log.

    Attributes:
        mps: the NVIDIA MPS by which its processes share a GPU; its ``note`` says what became of it.

    Raises:
        ServerError: it cannot be started; the message carries the end of the server's log.
    """

    def __init__(self, options: ServerOptions | None = None) -> None:
        self.options = options or ServerOptions()
        self.metadata: ModelMetadata | None = None
        self.cleared: list[Path] = []
        self._private: PrivateFolder | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._admin_token = self.options.admin_token or secrets.token_urlsafe(24)
        self._ports: Ports | None = None
        self._log_start = 0
        self._stubs = StubWatch(self.stub_pids)
        self._changing = threading.Lock()
        self.mps = Mps(self.options.mps if self.options.device == "cuda" else False)

    def __enter__(self) -> EmbeddedServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

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

    def start(self) -> None:
        """Render the repository, start the server and wait until an inference answers.

        Raises:
            ServerError: see the class.
        """
        check_numpy()
        on_cpu = self.options.device == "cpu"
        source = self.options.model_repository or default_repository()
        if not on_cpu:
            check_gpu(source)
        self.cleared = clear_leftovers()
        try:
            with held_back():
                self._private = PrivateFolder()
            count = self.options.instances
            if on_cpu:
                instances = cpu_instances(count or available_cores())
            else:
                instances = {PREPROCESS_MODEL: count, NETWORK_MODEL: count} if count else {}
            self.metadata = render(
                source,
                self._folder / "models",
                RenderOptions(
                    profile=self.options.profile,
                    instances=instances,
                    limits=self.options.limits,
                    precision=self.options.precision,
                    gate=self._folder / "gate" if on_cpu else None,
                ),
            )
            lay_out_backends(self._folder / "backends")
            chosen = self.options
            self._ports = Ports.choose(
                chosen.host, chosen.grpc_port, chosen.http_port, chosen.metrics_port
            )
            self._launch_patiently()
        except BaseException:
            self.stop()
            raise

    def roll_out(self, source: Path) -> Rollout:
        """Serve the network of another repository from now on, without a failed request.

        Raises:
            RolloutError: the old one serves on; says why.
        """
        return self._change(lambda repository: repository.roll_out(source))

    def roll_back(self) -> Rollout:
        """Serve the version before the present one again.

        Raises:
            RolloutError: the present one serves on; says why.
        """
        return self._change(lambda repository: repository.roll_back())

    def _change(self, action: Callable[[Repository], Rollout]) -> Rollout:
        folder, prefix = self._folder, self.shm_prefix
        client = self.probe(self.options.patience).connect()
        with self._changing, client:
            # Stubs of the version that goes end, some time after its last request: none is missed
            # until they have.
            pid = self.pid
            self._stubs.forget()
            try:
                done = action(Repository(folder / "models", client, self._admin_token))
            except RolloutError as error:
                if self.pid == pid:
                    raise
                raise RolloutError(
                    f"{error}; tritonserver hung or ended meanwhile, whether or not for the "
                    "network's sake: try again once it answers"
                ) from None
            finally:
                close_shared_memory(prefix)
                self._stubs.changed(
                    folder / "models", self.options.patience, lambda: self.pid == pid is not None
                )
            self.metadata = done.metadata
            return done

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
            self._launch()
        except OSError as error:
            raise ServerError(f"cannot start tritonserver: {error}") from error

    def _launch(self) -> None:
        require_free(self.options.host, self._listened_ports)
        try:
            if self.options.log_file is not None:
                self.log_path.parent.mkdir(parents=True, exist_ok=True)
            log = self.log_path.open("ab")
        except OSError as error:
            raise ServerError(f"cannot write the log {self.log_path}: {error.strerror}") from None
        try:
            added = self.mps.launch(self._folder)
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

    def _command(self) -> list[str]:
        assert self._private is not None
        return command(
            self.options, self._private.path, self._chosen_ports, self._admin_token,
            self._private.shm_prefix,
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

    def stop(self) -> None:
        """Let requests in flight finish, end the server and remove its private folder.

        What a signal raises meanwhile (a second Ctrl-C) ends the server at once; nothing is left.
        """
        try:
            # Triton itself waits up to --exit-timeout-secs for requests in flight.
            self.end_processes(grace=self.options.stop_timeout + 5.0)
        finally:
            with held_back():
                if self._private is not None:
                    self._private.remove()
                    self._private = None
