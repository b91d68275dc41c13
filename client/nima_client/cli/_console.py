"""The console of the commands."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nima_client.library.text import printable


def unclipped(console: Console, width: int) -> Console:
    """The console; where it is a pipe or a log, which has no width, one as wide as what is told.

    Cutting names there would lose them.
    """
    if console.is_terminal:
        return console
    return Console(file=console.file, width=max(console.width, width))


def add_file_column(table: Table) -> None:
    """The column of file names, the only one that gives way where a terminal is too narrow.

    Were it ``no_wrap`` as the others, rich would cut all of them by the same number of cells: one
    long name would leave no number on the screen.
    """
    table.add_column("file", min_width=12)


def file_cell(name: str) -> Text:
    """A name for that column: in one line, its end cut where it must be."""
    return Text(printable(name), no_wrap=True, overflow="ellipsis")
