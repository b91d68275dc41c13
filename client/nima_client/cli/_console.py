"""The console of the commands."""

from __future__ import annotations

import sys

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from nima_client.library.text import printable


def open_console(*, stderr: bool = False) -> Console:
    """The console of standard output or standard error; interactive on a real terminal only.

    Where ``FORCE_COLOR`` is set, as by CI services, rich takes a pipe and a log for a terminal too.
    Colours are wanted there; bars that move and names cut to a width are not.
    """
    stream = sys.stderr if stderr else sys.stdout
    there = stream is not None and stream.isatty()
    return Console(stderr=stderr, force_interactive=None if there else False)


def unclipped(console: Console, width: int) -> Console:
    """The console; where it is a pipe or a log, which has no width, one as wide as what is told.

    Cutting names there would lose them.
    """
    if console.is_interactive or console.is_dumb_terminal:
        return console
    return Console(file=console.file, width=max(console.width, width))


def speaks_unicode(console: Console) -> bool:
    """Whether the console can show any letter, and block characters."""
    return (console.encoding or "").lower().startswith("utf")


def as_shown(name: str, console: Console) -> str:
    """A name as it comes out there: in an encoding without its letters, their escapes."""
    encoding = console.encoding or "ascii"
    return printable(name).encode(encoding, "backslashreplace").decode(encoding)


def add_file_column(table: Table) -> None:
    """The column of file names, the only one that gives way where a terminal is too narrow.

    Were it ``no_wrap`` as the others, rich would cut all of them by the same number of cells: one
    long name would leave no number on the screen.
    """
    table.add_column("file", min_width=12)


def file_cell(name: str, console: Console) -> RenderableType:
    """A name for that column: in one line, its end cut where it must be."""
    text = as_shown(name, console)
    if speaks_unicode(console):
        return Text(text, no_wrap=True, overflow="ellipsis")
    return _PlainName(text)


def fits(table: Table, console: Console) -> bool:
    """Whether all its columns have room; rich cuts the last ones where they have not."""
    without_limit = console.options.update(width=10_000)
    return console.measure(table, options=without_limit).minimum <= console.width


class _PlainName:
    """A name whose cut end is marked by three dots: rich's own mark would become an escape."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, len(self._text)).with_maximum(options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text, width = self._text, options.max_width
        cut = text if len(text) <= width else text[: width - 3] + "..."
        yield Text(cut, no_wrap=True, overflow="crop")
