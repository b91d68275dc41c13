"""Free ports, and the refusal of taken ones."""

from __future__ import annotations

import socket

from nima_build.server._install import ServerError


def free_ports(host: str, count: int) -> list[int]:
    """Ports nobody listens on at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((host, 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def require_free(host: str, ports: list[int]) -> None:
    """Refuse taken ports: tritonserver would share a gRPC port with whoever has it."""
    for port in ports:
        with socket.socket() as attempt:
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                attempt.bind((host, port))
            except OSError as error:
                raise ServerError(
                    f"cannot listen on {host}:{port} ({error.strerror}): choose another port"
                ) from None
