"""A real tritonserver on this machine: rendered repository, free ports, rollouts, clean end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from nima_build.cores import available_cores
from nima_build.metadata import ModelMetadata
from nima_build.paths import temporary_folder
from nima_build.rendering import RenderOptions, cpu_instances, render
from nima_build.repository import default_repository
from nima_build.server._gpu import check_gpu
from nima_build.server._install import check_numpy, lay_out_backends
from nima_build.server._launched import LaunchedServer
from nima_build.server._options import ServerOptions
from nima_build.server._ports import Ports
from nima_build.server._private import PrivateFolder, clear_leftovers, close_shared_memory
from nima_build.server._rollout import Repository, Rollout, RolloutError
from nima_client._files import naming_full
from nima_client._signals import held_back
from nima_client.contract import NETWORK_MODEL, PREPROCESS_MODEL


class EmbeddedServer(LaunchedServer):
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
        super().__init__(options or ServerOptions())
        self.metadata: ModelMetadata | None = None
        self.cleared: list[Path] = []
        self._changing = threading.Lock()

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

    def start(self) -> None:
        """Render the repository, start the server and wait until an inference answers.

        Raises:
            ServerError: see the class.
        """
        check_numpy()
        source = self.options.model_repository or default_repository()
        if self.options.device != "cpu":
            self._gpus = check_gpu(source)
        self.cleared = clear_leftovers()
        try:
            with naming_full(temporary_folder()):
                self._prepare(source)
            self._launch_patiently()
        except BaseException:
            self.stop()
            raise

    def _prepare(self, source: Path) -> None:
        """Make the private folder, with all that a launch needs."""
        with held_back():
            self._private = PrivateFolder()
        count, on_cpu = self.options.instances, self.options.device == "cpu"
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
            # What the old server still had loaded, when it ended meanwhile, it has no more.
            return done if self.pid == pid else replace(done, remains="")

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
