"""Back-pressure between the two steps of an ensemble whose models are processes of their own.

Triton hands a decoded image to the network's queue, which no deadline guards, and the decoder takes
its next: where both share the cores it runs ahead, and under overload the network then works on
images whose callers have gone. Through a :class:`Gate` the decoder waits while enough images are
between the steps, so that the queue stands before the first step, which refuses what is too late.

A small file that all of them map into memory has a place of three words for each process: its
share of what is between the steps (their sum is the count), since when it is at work, and since
when it waits. A place belongs to whoever holds its lock, and with the process the kernel takes the
lock away: the next process goes on with that share, so that any number may come and go. Monotonic
time is one clock for all processes of a machine.

Who waits sleeps until it is rung: a datagram to its socket beside the file, from the second step,
to whoever has waited longest. That each looked every millisecond instead took 4 % of the throughput
of two cores, and whose turn it was was left to chance.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import mmap
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

_WORDS = 6144
_SIZE = _WORDS * 8
# The first words of the file: places in use or once used, when something moved last, how many were
# given up for lost since the second step last began anything, and when the first image passed then.
_PLACES, _LAST_MOVED, _GIVEN_UP, _PASSED_SINCE, _FIRST = range(5)
# And of a place.
_PLACE = 3
_SHARE, _WORKING, _WAITING = range(_PLACE)
# Where no socket can be had (a long path), and where a ring was missed.
_POLL_SECONDS = 0.004
_LISTEN_SECONDS = 0.02
# A second step that has nothing to do begins what passes within this time.
_PROMPT_SECONDS = 0.1
_STILL_SECONDS = 0.25
_LOOKS = 3
# A process that was killed at its work is at it for ever: not counted after this long.
_LONGEST_WORK_SECONDS = 10.0


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
        ValueError: more processes at once than it has room for.
    """

    def __init__(self, path: str | Path, limit: int) -> None:
        self._path = os.fspath(path)
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._words = memoryview(mmap.mmap(self._file, _SIZE)).cast("q")
        self._limit = limit
        with self._locked():
            used, room = self._words[_PLACES], (_WORDS - _FIRST) // _PLACE
            # New places first: to try the old ones takes time where all their owners live.
            for place in itertools.chain(range(used, room), range(used)):
                own = _FIRST + _PLACE * place
                if self._lock(own, fcntl.F_WRLCK):
                    break
            else:
                raise ValueError(f"{path} has no room for another process")
            self._words[_PLACES] = max(used, place + 1)
        self._share, self._working, self._waiting = own + _SHARE, own + _WORKING, own + _WAITING
        # They may be left from one that was killed.
        self._words[self._working] = self._words[self._waiting] = 0
        self._bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._bell.settimeout(_LISTEN_SECONDS)
        self._rings = self._hang(place)

    def between(self) -> int:
        """Images that passed the first step and were not begun by the second.

        Less than none where images were given up for lost (:meth:`wait`) and begun after all.
        """
        return sum(self._all(_SHARE))

    def wait(self) -> None:
        """First step, before it works: return when there is room.

        A request may vanish between the steps (its caller hung up) and would be counted for ever.
        So when nothing has moved for long although something seems to wait, nothing does: the count
        starts again from nothing. When it turns out that something did wait (:meth:`taken`, or a
        count below nothing), that is put right.
        """
        looks, since = 0, time.monotonic_ns()
        try:
            while (count := self.between()) != 0:
                # A machine that stood still as a whole moves again in any order: look for a while.
                looked = count < self._limit or looks >= _LOOKS
                if count < 0 or (looked and self._still()):
                    with self._locked():
                        if self.between() == count:
                            self._words[self._share] -= count
                            self._words[_GIVEN_UP] = max(0, self._words[_GIVEN_UP] + count)
                    return
                if count < self._limit:
                    return
                if not self._words[self._waiting]:
                    # And look again: what was begun just now rang for nobody.
                    self._words[self._waiting] = since
                    continue
                begin = time.monotonic()
                self._listen()
                looks = looks + 1 if time.monotonic() - begin < _STILL_SECONDS / 2 else 0
        finally:
            self._words[self._waiting] = 0

    def passed(self, images: int) -> None:
        """First step, when it is done with images that go on."""
        self._words[_LAST_MOVED] = now = time.monotonic_ns()
        if self._words[_GIVEN_UP] and not self._words[_PASSED_SINCE]:
            self._words[_PASSED_SINCE] = now
        self._words[self._share] += images

    @contextlib.contextmanager
    def taken(self, images: int) -> Iterator[None]:
        """Second step, around its work on images."""
        now = time.monotonic_ns()
        self._words[_LAST_MOVED] = now
        self._words[self._working] = now
        if self._words[_GIVEN_UP]:
            self._take_back(now)
        self._words[self._share] -= images
        self._ring()
        try:
            yield
        finally:
            self._words[_LAST_MOVED] = time.monotonic_ns()
            self._words[self._working] = 0

    def _take_back(self, now: int) -> None:
        """Count again what was given up, unless what passed since is begun as by an idle step.

        The second step begins images in their order. Those given up come first where they are
        there after all, whenever that is; where they are lost, the next that passes is begun at
        once. Were they left out of the count, the gate would stay so much wider under a load that
        never lets the count fall below nothing.
        """
        with self._locked():
            given_up, since = self._words[_GIVEN_UP], self._words[_PASSED_SINCE]
            self._words[_GIVEN_UP] = self._words[_PASSED_SINCE] = 0
            if not since or now - since > _PROMPT_SECONDS * 1e9:
                self._words[self._share] += given_up

    def _still(self) -> bool:
        """Whether nothing has gone in, begun or ended for long, and nothing is at work."""
        now = time.monotonic_ns()
        # Who is at work before when it moved: work that ends between the two has moved just now.
        at_work = [since for since in self._all(_WORKING) if since]
        if now - self._words[_LAST_MOVED] < _STILL_SECONDS * 1e9:
            return False
        return all(now - since > _LONGEST_WORK_SECONDS * 1e9 for since in at_work)

    def _all(self, word: int) -> memoryview:
        """One of the words of every place."""
        return self._words[_FIRST + word : _FIRST + _PLACE * self._words[_PLACES] : _PLACE]

    def _hang(self, place: int) -> bool:
        """Give the bell its address; whether it has one."""
        address = self._address(place)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(address)  # of an ended process
            self._bell.bind(address)
        except OSError:  # the path is too long for an address, say
            return False
        return True

    def _address(self, place: int) -> str:
        return f"{self._path}.{place}"

    def _listen(self) -> None:
        """Sleep until it is rung, or it is time to look whether anything moves at all."""
        if not self._rings:
            time.sleep(_POLL_SECONDS)
            return
        with contextlib.suppress(TimeoutError):
            self._bell.recv(1)

    def _ring(self) -> None:
        """Wake as many as there is room for, of those that have waited longest."""
        waiting = sorted((since, place) for place, since in enumerate(self._all(_WAITING)) if since)
        for _, place in waiting[: max(0, self._limit - self.between())]:
            # Not twice: before it has come so far as to look, the next one is due.
            self._words[_FIRST + _PLACE * place + _WAITING] = 0
            with contextlib.suppress(OSError):  # it ended, or looks by itself
                self._bell.sendto(b"1", socket.MSG_DONTWAIT, self._address(place))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among all processes."""
        self._lock(_PLACES, fcntl.F_WRLCK, wait=True)
        try:
            yield
        finally:
            self._lock(_PLACES, fcntl.F_UNLCK)

    def _lock(self, word: int, kind: int, *, wait: bool = False) -> bool:
        """Lock or unlock a word; whether it could be done. The lock is that of this open file."""
        command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
        # struct flock: type, whence, start, length, and a process id that must be 0 here.
        region = struct.pack("hhqqi4x", kind, os.SEEK_SET, word * 8, 8, 0)
        try:
            fcntl.fcntl(self._file, command, region)
        except BlockingIOError:
            return False
        return True


def open_gate(parameters: Mapping[str, str]) -> OpenGate:
    """The gate that a model config names: ``gate``, its file, and ``gate_limit``."""
    if path := parameters.get("gate"):
        return Gate(path, int(parameters.get("gate_limit", "1")))
    return OpenGate()
