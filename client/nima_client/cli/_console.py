"""The console of the commands."""

from __future__ import annotations

import errno
import os

from rich.console import Console


class Terminal(Console):
    """A console that leaves it to the command how to end when nobody reads it any more."""

    def on_broken_pipe(self) -> None:
        """Rich would exit with status 1, which says that photos have no score.

        Raises:
            BrokenPipeError: always.
        """
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def unclipped(console: Console, width: int) -> Console:
    """The console; where it is a pipe or a log, which has no width, one as wide as what is told.

    Cutting names there would lose them.
    """
    if console.is_terminal:
        return console
    return Terminal(file=console.file, width=max(console.width, width))
