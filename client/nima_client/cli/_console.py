"""The console of the commands."""

from __future__ import annotations

from rich.console import Console


def unclipped(console: Console, width: int) -> Console:
    """The console; where it is a pipe or a log, which has no width, one as wide as what is told.

    Cutting names there would lose them.
    """
    if console.is_terminal:
        return console
    return Console(file=console.file, width=max(console.width, width))
