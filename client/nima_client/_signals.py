"""What asks a program to end: Ctrl-C, SIGTERM, SIGHUP. For all three packages."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING = ("SIGINT", "SIGTERM", "SIGHUP")
TWICE_S = 1.0
"""A second one so soon is the same wish (a key pressed twice), and would cut the closing short."""


class Stopped(KeyboardInterrupt):
    """A signal asked this program to end.

    Attributes:
        number: of the signal.
        status: exit status that says so, as shells do: 130 for Ctrl-C, 143 for SIGTERM.
        kept: what is kept of the work and how to go on; whoever knows fills it in.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.status = 128 + number
        self.kept = ""


@contextmanager
def stoppable(program: str, kept: str = "", *, last: bool = True) -> Iterator[None]:
    """Around a program's work: Ctrl-C, SIGTERM and SIGHUP raise :class:`Stopped` in it, so that
    what is open is closed; then one line on standard error says so, and the program ends.

    Another one within a second changes nothing; a later one raises again, since a library may have
    swallowed the first. One that was ignored before (SIGHUP under nohup, Ctrl-C in the background)
    stays ignored. In a thread that is not the main one nothing changes.

    Args:
        program: its name.
        kept: what is kept of the work and how to go on, unless :attr:`Stopped.kept` says it.
        last: nothing follows but the end of the process, which further signals cut short without a
            word; else their handlers are put back.

    Raises:
        SystemExit: with :attr:`Stopped.status`.
    """
    owner, first, by = os.getpid(), 0.0, None

    def end(number: int, _frame: FrameType | None) -> None:
        nonlocal first, by
        if os.getpid() != owner:  # a fork that goes on with its parent's handlers
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if by is not None and time.monotonic() - first < TWICE_S:
            return
        first, by = time.monotonic(), by or Stopped(number)
        raise by

    before = {number: signal.signal(number, end) for number in _handled()}
    try:
        yield
    except BaseException as error:
        # Whatever a library made of it on its way here.
        if by is None or (isinstance(error, SystemExit) and not error.code):
            raise
        kept = by.kept or kept
        with contextlib.suppress(OSError, AttributeError):  # nobody reads it, or it is closed
            sys.stderr.write(f"{program}: stopped{f': {kept}' if kept else ''}\n")
            sys.stderr.flush()
        raise SystemExit(by.status) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if last else handler)


@contextmanager
def held_back() -> Iterator[None]:
    """What these signals raise waits for the end of the block: for steps of a moment that belong
    together. In a thread that is not the main one nothing changes: signals raise nothing there.
    """
    came: list[int] = []
    # Python runs its handlers in this thread whichever the kernel picked: a mask is not enough.
    before = {n: signal.signal(n, lambda number, _: came.append(number)) for n in _handled()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


@contextmanager
def children_without_ctrl_c() -> Iterator[None]:
    """Processes started in it never see Ctrl-C, which a terminal sends to a whole group.

    It is for their parent to end them. Here it is only late.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _handled() -> list[int]:
    """Those that end this program or raise something in it, where that can be changed."""
    if threading.current_thread() is not threading.main_thread():
        return []
    numbers = [getattr(signal, name) for name in _ENDING if hasattr(signal, name)]
    # None: a handler that is not Python's, which could not be put back.
    return [n for n in numbers if signal.getsignal(n) not in (signal.SIG_IGN, None)]
