"""A progress bar on a terminal; nothing elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

T = TypeVar("T")

_WIDE = 60
"""Cells in which counts of six digits leave room for the rate."""


class Tracker:
    """Counts photos; drives the bar where there is one."""

    def __init__(
        self, progress: Progress | None, total: int | None, done: int, doing: str = ""
    ) -> None:
        self.count = 0
        self._progress = progress
        self._started = time.monotonic()
        if progress is not None:
            self._task = progress.add_task(doing, total=total, completed=done, rate="")

    def __call__(self, items: Iterable[T]) -> Iterator[T]:
        """Pass items through, counting them."""
        for item in items:
            self.count += 1
            if self._progress is not None:
                self._progress.update(self._task, advance=1, rate=f"{self.rate:.1f} photos/s")
            yield item

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self._started

    @property
    def rate(self) -> float:
        """Photos a second since the start."""
        return self.count / max(self.seconds, 1e-9)


@contextmanager
def tracking(
    console: Console,
    total: int | None,
    *,
    done: int = 0,
    bar: bool = True,
    doing: str = "Scoring",
) -> Iterator[Tracker]:
    """A tracker for one run.

    Args:
        console: where the bar appears, if that is a terminal.
        total: photos in all; None while unknown.
        done: photos of them scored by an earlier run.
        bar: whether a bar is wanted at all.
        doing: what the bar is of.
    """
    if not bar or not console.is_interactive:
        yield Tracker(None, total, done)
        return
    rate = (TextColumn("{task.fields[rate]}"),) if console.width >= _WIDE else ()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),  # the only one that gives way
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        *rate,
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
    )
    # rich would send what goes to standard output to this console: results belong in their file.
    with Progress(
        *columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False
    ) as progress:
        yield Tracker(progress, total, done, doing)
