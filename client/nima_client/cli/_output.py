"""How the commands treat their output, whether or not the packages of an extra are there."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_NO_READER = 141  # as shells say of a program ended by SIGPIPE


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """End the program quietly when nobody reads its output any more (``| head``).

    Raises:
        SystemExit: with :data:`EXIT_NO_READER`.
    """
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        # What is left in a buffer would fail again when Python ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            # Where it is closed, or a caller put in something without a number.
            with contextlib.suppress(OSError, AttributeError):
                os.dup2(nowhere, stream.fileno())
        raise SystemExit(EXIT_NO_READER) from None


def ready_stdout() -> None:
    """Make sure that standard output takes whatever a file name may hold.

    Raises:
        ValueError: it is closed.
    """
    if sys.stdout is None:
        raise ValueError("standard output is closed: there is nowhere to write to")
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors != "backslashreplace":
        # A terminal or a pipe that is not UTF-8 would end the run at the first foreign letter.
        sys.stdout.reconfigure(errors="backslashreplace")
