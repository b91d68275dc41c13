"""Processes that end with their parent, and an orderly end when a signal asks for it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator
from types import FrameType

_PR_SET_PDEATHSIG = 1


def end_with_parent(number: int = signal.SIGTERM, parent: int | None = None) -> None:
    """Have the kernel send this process a signal when its parent ends, however that ends.

    Called in the child. "Parent" is the thread that started it: that thread must live as long.

    Args:
        number: the signal.
        parent: process id of the parent, to notice that it ended before this call; the process
            then ends at once.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if parent is not None and os.getppid() != parent:
        os._exit(128 + number)


@contextlib.contextmanager
def orderly_end(
    signals: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGHUP),
) -> Iterator[None]:
    """Within it these signals raise ``SystemExit(128 + number)``, so that what is open is closed.

    Further ones are ignored then: they would cut the closing short. One that was ignored before
    (SIGHUP under nohup) stays ignored. Only in the main thread.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        for other in handled:
            signal.signal(other, signal.SIG_IGN)
        raise SystemExit(128 + number)

    handled = [number for number in signals if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
