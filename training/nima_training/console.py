"""What a run shows on the terminal, beside its lines of figures."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print one line as it stands: names may hold brackets, and a log is read line by line."""
    console.print(text, style=style, markup=False, emoji=False, soft_wrap=True)


def progress_bar(console: Console, main_process: bool) -> Progress:
    """The bar of an epoch, on a terminal, of one process."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=not (main_process and console.is_interactive),
    )  # fmt: skip


def note_unreadable(
    console: Console, known: dict[int, str], errors: Iterable[tuple[int, str]]
) -> None:
    """Add the (row, reason) of files that could not be read to ``known``; name each new one."""
    for row, reason in errors:
        if row not in known:
            known[row] = reason
            say(console, f"skipped {reason}", "yellow")
