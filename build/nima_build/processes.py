"""Processes that end with their parent."""

from __future__ import annotations

import ctypes
import os
import signal

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
