"""How the commands treat their output, whether or not the packages of an extra are there."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from nima_client._os_errors import in_words

EXIT_NO_OUTPUT = 2  # not 1, which says of the photos or the server that something is wrong
EXIT_NO_READER = 141  # as shells say of a program ended by SIGPIPE


@contextmanager
def output_may_end(program: str) -> Iterator[None]:
    """Around a program's work: its output may be read by nobody any more (``| head``), which ends
    it quietly, or go where there is no place left, which ends it with one line.

    Args:
        program: its name.

    Raises:
        SystemExit: with :data:`EXIT_NO_READER` or :data:`EXIT_NO_OUTPUT`.
    """
    try:
        try:
            yield
        except SystemExit as end:
            # What Typer and Rich make of it, with the status of a run that failed.
            if end.code == 1 and isinstance(end.__context__, BrokenPipeError):
                raise end.__context__ from None
            raise
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        _drop_what_is_left()
        raise SystemExit(EXIT_NO_READER) from None
    except OSError as error:
        with contextlib.suppress(OSError, AttributeError):  # it may be of standard error
            sys.stderr.write(f"{program}: {in_words(error)}\n")
            sys.stderr.flush()
        _drop_what_is_left()
        raise SystemExit(EXIT_NO_OUTPUT) from None


def _drop_what_is_left() -> None:
    """What is in a buffer would fail again when Python ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        # Where it is closed, or a caller put in something without a number.
        with contextlib.suppress(OSError, AttributeError):
            os.dup2(nowhere, stream.fileno())


def have_stderr() -> None:
    """Where standard error is closed, let what is told there go nowhere.

    ``print(file=None)`` would put it among the results on standard output; and the next file opened
    would get the number 2, to which libraries in C write.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the end


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
