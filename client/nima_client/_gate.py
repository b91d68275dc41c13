"""Back-pressure between the two steps of an ensemble whose models are processes of their own.

Triton hands a decoded image to the network's queue, which no deadline guards, and the decoder takes
its next: where both share the cores it runs ahead, and under overload the network then works on
images whose callers have gone. Through a :class:`Gate` the decoder waits while enough images are
between the steps, so that the queue stands before the first step, which refuses what is too late.

A small file that all of them map into memory holds a counter for each process, which only that
process writes. What is between the steps is their sum. Monotonic time is one clock for all
processes of a machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

_WORDS = 512
_SIZE = _WORDS * 8
# The first words of the file; behind them comes one of each process.
_TAKEN, _LAST_BEGUN, _LONGEST = range(3)
_POLL_SECONDS = 0.001
_STALE_SECONDS = 0.25


def create_gate(path: Path) -> None:
    """Write the file of a gate through which nothing has gone yet, in the place of an old one."""
    partial = path.with_name(f".{path.name}.new")
    partial.write_bytes(bytes(_SIZE))
    partial.replace(path)


class OpenGate:
    """A gate that stops nobody, where the config names none."""

    def wait(self) -> None:
        """Return at once."""

    def passed(self, images: int) -> None:
        """Nothing to count."""

    @contextlib.contextmanager
    def taken(self, images: int) -> Iterator[None]:
        """Nothing to count."""
        yield


class Gate(OpenGate):
    """One process's side of a gate.

    Args:
        path: the file, from :func:`create_gate`.
        limit: images between the steps at which :meth:`wait` waits.

    Raises:
        OSError: no such file.
        ValueError: more processes than it has room for.
    """

    def __init__(self, path: str | Path, limit: int) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._words = memoryview(mmap.mmap(self._file, _SIZE)).cast("q")
        self._limit = limit
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._words[_TAKEN] += 1
        self._own = _LONGEST + self._words[_TAKEN]
        fcntl.flock(self._file, fcntl.LOCK_UN)
        if self._own >= _WORDS:
            raise ValueError(f"{path} has no room for another process")

    def between(self) -> int:
        """Images that passed the first step and were not begun by the second."""
        first = _LONGEST + 1
        return sum(self._words[first : first + self._words[_TAKEN]])

    def wait(self) -> None:
        """First step, before it works: return when there is room.

        A request may vanish between the steps (its caller hung up) and is counted for ever. So when
        the second step has begun nothing for long although something seems to wait, nothing does:
        the count starts again from nothing.
        """
        while (count := self.between()) >= self._limit:
            idle = (time.monotonic_ns() - self._words[_LAST_BEGUN]) / 1e9
            if idle > max(_STALE_SECONDS, 3 * self._words[_LONGEST] / 1e9):
                fcntl.flock(self._file, fcntl.LOCK_EX)
                if self.between() == count:
                    self._words[self._own] -= count
                fcntl.flock(self._file, fcntl.LOCK_UN)
                return
            time.sleep(_POLL_SECONDS)

    def passed(self, images: int) -> None:
        """First step, when it is done with images that go on."""
        self._words[self._own] += images

    @contextlib.contextmanager
    def taken(self, images: int) -> Iterator[None]:
        """Second step, around its work on images."""
        begin = time.monotonic_ns()
        self._words[self._own] -= images
        self._words[_LAST_BEGUN] = begin
        try:
            yield
        finally:
            # How long the work may take is remembered, and slowly forgotten.
            remembered = self._words[_LONGEST] * 15 // 16
            self._words[_LONGEST] = max(time.monotonic_ns() - begin, remembered)


def open_gate(parameters: Mapping[str, str]) -> OpenGate:
    """The gate that a model config names: ``gate``, its file, and ``gate_limit``."""
    if path := parameters.get("gate"):
        return Gate(path, int(parameters.get("gate_limit", "1")))
    return OpenGate()
