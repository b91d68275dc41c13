"""How to run the embedded server."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from nima_build.repository import GRAPHS
from nima_build.server._install import ServerError
from nima_build.server._security import ServerTLS
from nima_client.preprocess import DEFAULT_LIMITS, Limits

DEVICES = {"cpu": "embedded", "cuda": "embedded-gpu"}
"""The profile of each device that the embedded server runs on."""


@dataclass(frozen=True)
class ServerOptions:
    """How to run the server.

    Attributes:
        model_repository: folder with every profile; None takes the project's own.
        grpc_port: gRPC port; 0 takes a free one, as for the other two.
        http_port: HTTP port.
        http: whether to open the HTTP endpoint; None opens it on loopback without TLS only. One
            HTTP request of the wrong kind ends tritonserver 2.51 (SECURITY.md has more).
        metrics_port: Prometheus port.
        host: IPv4 address or name to listen on. Loopback unless told otherwise.
        device: ``cpu``, or ``cuda`` for one that decodes and scores on the NVIDIA GPU (profile
            ``embedded-gpu``; needs the extra serve-gpu, and ``nima build --target inductor``).
        mps: whether the processes of a server on a GPU share one context of it by NVIDIA MPS, of
            which the server has a daemon of its own; None does where that is possible. A daemon
            that runs already (``CUDA_MPS_PIPE_DIRECTORY``, or the system's) is used as it is.
        instances: images to work on at once; None takes one a core. So many networks, and decoders
            to spare (:func:`~nima_build.rendering.cpu_instances`). On a GPU instances of each
            step; None takes what its configs say.
        limits: largest image in bytes and pixels.
        precision: ``fp32``, or ``int8`` (``model.int8.onnx``) for less than half the CPU in the
            network and mean ratings that move by 0.015 on average.
        log_file: where tritonserver's log goes; None keeps it in the private folder, which is
            removed at a clean end.
        start_timeout: seconds until the first inference must have answered; None takes 60, and 180
            on a GPU, whose libraries are large.
        stop_timeout: seconds for requests in flight when the server is asked to end.
        tls: encrypts the gRPC endpoint; None speaks plain text, for loopback or a private network.
        admin_token: opens the repository, shared-memory, trace and logging APIs to whoever sends it
            in the header ``nima-admin``; None makes one that only this process knows.
        extra_arguments: passed on to tritonserver as they are; paths in them must be absolute.
    """

    model_repository: Path | None = None
    grpc_port: int = 0
    http_port: int = 0
    metrics_port: int = 0
    http: bool | None = None
    host: str = "127.0.0.1"
    device: str = "cpu"
    mps: bool | None = None
    instances: int | None = None
    limits: Limits = DEFAULT_LIMITS
    precision: str = "fp32"
    log_file: Path | None = None
    start_timeout: float | None = None
    stop_timeout: float = 10.0
    tls: ServerTLS | None = None
    admin_token: str | None = None
    extra_arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if ":" in self.host:
            raise ServerError(f"--host takes an IPv4 address or a name, not {self.host!r}")
        ports = [port for port in (self.grpc_port, self.http_port, self.metrics_port) if port]
        if bad := [port for port in ports if not 1 <= port <= 65535]:
            raise ServerError(f"{bad[0]} is no port: choose one of 1 to 65535, or 0 for a free one")
        if len(set(ports)) < len(ports):
            raise ServerError("gRPC, HTTP and metrics need three different ports")
        if self.precision not in GRAPHS:
            raise ServerError(f"no precision {self.precision!r}: choose {' or '.join(GRAPHS)}")
        if self.device not in DEVICES:
            raise ServerError(f"no device {self.device!r}: choose {' or '.join(DEVICES)}")
        if self.device == "cuda" and self.precision != "fp32":
            raise ServerError(f"{self.precision} is for the CPU: a GPU runs what was built for it")
        if self.device != "cuda" and self.mps:
            raise ServerError("NVIDIA MPS is for a GPU: --mps goes with --device cuda")
        if self.http and self.tls is not None:
            raise ServerError("Triton's HTTP endpoint has no TLS: leave it out where TLS is on")
        if self.admin_token is not None and not re.fullmatch(r"[\w.~-]{8,}", self.admin_token):
            raise ServerError(
                "the admin token needs 8 characters or more of A-Z a-z 0-9 _ . ~ -: "
                "tritonserver's argument cannot carry others"
            )

    @property
    def patience(self) -> float:
        """Seconds until the first inference must have answered."""
        if self.start_timeout is not None:
            return self.start_timeout
        return 60.0 if self.device == "cpu" else 180.0

    @property
    def profile(self) -> str:
        """One of :data:`nima_client.contract.PROFILES`."""
        return DEVICES[self.device]

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def serves_http(self) -> bool:
        """Whether the HTTP endpoint is open."""
        return self.http if self.http is not None else self.on_loopback and self.tls is None
