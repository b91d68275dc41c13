"""A closed loop over raw HTTP/1.1, the same for every server: equal cost on the client's side.

One thread, one epoll, requests built beforehand: about 0.1 ms of CPU an image, whoever answers.
"""

from __future__ import annotations

import re
import selectors
import socket
import time
from collections.abc import Sequence

_DRAIN_TIMEOUT = 60.0
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)


class LoadError(RuntimeError):
    """A server closed a connection, answered with an error, or not at all."""


def post(host: str, path: str, content_type: str, body: bytes, extra: str = "") -> bytes:
    """A whole keep-alive request."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n{extra}\r\n"
    )
    return head.encode() + body


class _Connection:
    """One request at a time over one socket."""

    def __init__(self, address: tuple[str, int], timeout: float = 10.0) -> None:
        self.socket = socket.create_connection(address, timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.unsent = memoryview(b"")
        self.received = bytearray()
        self.begin = 0.0

    def start(self, request: bytes) -> None:
        self.unsent, self.received, self.begin = (
            memoryview(request),
            bytearray(),
            time.perf_counter(),
        )

    def send(self) -> bool:
        """Send what the socket takes; whether all has gone."""
        try:
            while self.unsent:
                self.unsent = self.unsent[self.socket.send(self.unsent) :]
        except BlockingIOError:
            return False
        return True

    def receive(self) -> bytes | None:
        """The body once it is complete."""
        try:
            part = self.socket.recv(65536)
        except BlockingIOError:
            return None
        if not part:
            raise LoadError(f"connection closed after {bytes(self.received[:200])!r}")
        self.received += part
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return None
        if not self.received.startswith(b"HTTP/1.1 200"):
            raise LoadError(bytes(self.received[:300]).decode(errors="replace"))
        length = _LENGTH.search(self.received, 0, end + 2)
        if length is None:
            raise LoadError("an answer without Content-Length")
        whole = end + 4 + int(length[1])
        return bytes(self.received[end + 4 : whole]) if len(self.received) >= whole else None


def ask(address: tuple[str, int], request: bytes, timeout: float = 30.0) -> bytes:
    """One request on a connection of its own; its answer's body."""
    connection = _Connection(address, timeout)
    try:
        connection.start(request)
        connection.socket.sendall(request)
        while (body := connection.receive()) is None:
            pass
        return body
    finally:
        connection.socket.close()


def closed_loop(
    address: tuple[str, int],
    requests: Sequence[bytes],
    concurrency: int,
    seconds: float,
    warm_up: float = 0.3,
) -> tuple[float, list[float], int]:
    """Keep ``concurrency`` requests in flight.

    Returns:
        Images per second; the latency in seconds of every request that ended within the measured
        time; how many requests were answered in all, warm-up included. What is still in flight at
        the end is waited for, so that the next server to be measured has the machine to itself.

    Raises:
        LoadError: see the class.
    """
    selector = selectors.DefaultSelector()
    connections: list[_Connection] = []
    sent = 0

    def launch(connection: _Connection, register: bool) -> None:
        nonlocal sent
        connection.start(requests[sent % len(requests)])
        sent += 1
        events = selectors.EVENT_READ
        if not connection.send():
            events |= selectors.EVENT_WRITE
        (selector.register if register else selector.modify)(connection.socket, events, connection)

    try:
        for _ in range(concurrency):
            connections.append(_Connection(address))
            connections[-1].socket.setblocking(False)
        for connection in connections:
            launch(connection, register=True)
        begin = time.perf_counter() + warm_up
        end, latencies = begin + seconds, []
        in_flight = concurrency
        while in_flight:
            if time.perf_counter() > end + _DRAIN_TIMEOUT:
                raise LoadError(f"{in_flight} requests were never answered")
            for key, events in selector.select(timeout=0.5):
                connection = key.data
                if events & selectors.EVENT_WRITE and connection.send():
                    selector.modify(connection.socket, selectors.EVENT_READ, connection)
                if events & selectors.EVENT_READ and connection.receive() is not None:
                    answered = time.perf_counter()
                    if begin <= answered < end:
                        latencies.append(answered - connection.begin)
                    if answered < end:
                        launch(connection, register=False)
                    else:
                        selector.unregister(connection.socket)
                        in_flight -= 1
        if not latencies:
            raise LoadError(f"nothing was answered within {seconds:g} s")
        return len(latencies) / seconds, latencies, sent
    finally:
        for connection in connections:
            connection.socket.close()
        selector.close()
