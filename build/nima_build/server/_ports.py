"""Free ports, the refusal of taken ones, and who listens on them."""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection
from dataclasses import dataclass

from nima_build.server._install import ServerError


@dataclass(frozen=True)
class Ports:
    """Those of one server: gRPC, HTTP, metrics."""

    grpc: int
    http: int
    metrics: int

    @classmethod
    def choose(cls, host: str, *wanted: int) -> Ports:
        """The wanted ones, a free one in the place of each 0.

        Raises:
            ServerError: the address is not this machine's.
        """
        free = iter(free_ports(host, wanted.count(0)))
        return cls(*(port or next(free) for port in wanted))

    def listened(self, http: bool) -> list[int]:
        """Those that are opened, the one of HTTP only where it is."""
        return [self.grpc, *([self.http] if http else []), self.metrics]


def free_ports(host: str, count: int) -> list[int]:
    """Ports nobody listens on at this moment.

    Raises:
        ServerError: the address is not this machine's.
    """
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            try:
                one.bind((host, 0))
            except OSError as error:
                raise _cannot_listen(host, error) from None
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def require_free(host: str, ports: list[int]) -> None:
    """Refuse taken ports: tritonserver would share a gRPC port with whoever has it.

    Raises:
        ServerError: one is taken, or the address is not this machine's.
    """
    for port in ports:
        with socket.socket() as attempt:
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                attempt.bind((host, port))
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise _cannot_listen(host, error) from None
                raise ServerError(
                    f"cannot listen on {host}:{port} ({error.strerror}): choose another port "
                    "(0 takes a free one), or stop what has it"
                ) from None


def listens(pid: int, ports: Collection[int]) -> bool:
    """Whether this process itself listens on all of these ports.

    That somebody answers on them says less: of two servers that were started on the same ports at
    the same moment, one has them. tritonserver opens the metrics port last, when it is ready.
    """
    import psutil

    try:
        sockets = psutil.Process(pid).net_connections("tcp")
    except psutil.NoSuchProcess:
        return False
    open_ports = {one.laddr.port for one in sockets if one.status == psutil.CONN_LISTEN}
    return open_ports.issuperset(ports)


def _cannot_listen(host: str, error: OSError) -> ServerError:
    return ServerError(
        f"cannot listen on {host} ({error.strerror}): --host takes an address of this machine"
    )
