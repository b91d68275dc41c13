"""One server at a time: the others are stopped (SIGSTOP) while one is measured.

An idle server is not free: Ray Serve's processes take 8 % of a core, which the others would pay.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

import psutil

from nima_client._stall import AFTERMATH_SECONDS

# Seconds: for our own server, whose stubs answer nothing right after a standstill, and for the
# timers that ran out while a server was stopped.
SETTLE = AFTERMATH_SECONDS + 0.3


class Started(Protocol):
    """A server as this needs it: a name, and the first of its processes."""

    @property
    def name(self) -> str: ...

    @property
    def pid(self) -> int: ...


def pause(pid: int) -> list[psutil.Process]:
    """Stop a process and its descendants, parents first: one that is stopped starts no others.

    Returns:
        Those stopped, in that order; none where the first has ended.
    """
    stopped: dict[int, psutil.Process] = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        first = psutil.Process(pid)
        found = [first]
        while found:
            for process in found:
                stopped[process.pid] = process
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.suspend()
            found = [p for p in first.children(recursive=True) if p.pid not in stopped]
    return list(stopped.values())


def _resume(stopped: list[psutil.Process]) -> None:
    """Let them run again, parents last: whoever watches its children finds them well."""
    for process in reversed(stopped):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()


class Turns:
    """Within it, servers stand still but for the one whose turn it is; at its end all run again.

    Args:
        servers: all of them, up. Only they and their descendants are stopped.
    """

    def __init__(self, servers: Sequence[Started]) -> None:
        self._servers = list(servers)
        self._stopped: dict[str, list[psutil.Process]] = {}

    def __enter__(self) -> Turns:
        try:
            for server in self._servers:
                self._stopped[server.name] = pause(server.pid)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # A stopped process would not see that it is told to end.
        for stopped in self._stopped.values():
            _resume(stopped)
        self._stopped.clear()

    @contextlib.contextmanager
    def of(self, server: Started) -> Iterator[None]:
        """The turn of one server."""
        _resume(self._stopped[server.name])
        try:
            time.sleep(SETTLE)
            yield
        finally:
            self._stopped[server.name] = pause(server.pid)
