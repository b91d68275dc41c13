"""Scores as a table on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from nima_client.cli._console import (
    add_file_column,
    as_shown,
    file_cell,
    fits,
    speaks_unicode,
    unclipped,
)
from nima_client.contract import NUM_RATINGS
from nima_client.library.rows import Row
from nima_client.library.text import common_folder, printable
from nima_client.results import percentile_text

_BLOCKS = " ▁▂▃▄▅▆▇█"
_ASCII_BLOCKS = " .:-=+*#@"
# From the lowest percentile to the highest, as a photo's rank in the reference set.
_COLOURS = (
    (10.0, "red"),
    (35.0, "yellow"),
    (65.0, "white"),
    (90.0, "green"),
    (101.0, "bold green"),
)


def histogram(distribution: Sequence[float], *, blocks: str = _BLOCKS) -> str:
    """Ten characters whose heights are the probabilities of the ratings 1..10.

    The highest bin fills its cell; a rating with any noticeable share (over 0.5 %) shows.
    """
    peak = max(distribution) or 1.0
    steps = len(blocks) - 1
    heights = [round(p / peak * steps) for p in distribution]
    return "".join(
        blocks[max(height, 1 if p > 0.005 else 0)]
        for height, p in zip(heights, distribution, strict=True)
    )


def score_table(
    rows: Sequence[Row], console: Console, *, title: str | None = None, ratings: bool = True
) -> Table:
    """A table of scores: file, mean, std, percentile and the histogram of the ratings.

    Args:
        rows: what to show, in order.
        console: where it will be printed.
        title: a line above.
        ratings: whether the histogram is wanted.
    """
    unicode = speaks_unicode(console)
    folder = common_folder([row.file for row in rows])
    table = Table(
        box=box.ROUNDED if unicode else box.ASCII,
        title=title,
        title_style="bold",
        header_style="bold",
        border_style="dim",
    )
    add_file_column(table)
    table.add_column("mean", justify="right", no_wrap=True)
    table.add_column("std", justify="right", no_wrap=True)
    percentiles = any(row.percentile is not None for row in rows)
    if percentiles:
        table.add_column("pct", justify="right", no_wrap=True)
    if ratings:
        table.add_column("ratings 1…10" if unicode else "ratings 1-10", no_wrap=True)
    blocks = _BLOCKS if unicode else _ASCII_BLOCKS
    for row in rows:
        style = _colour(row.percentile)
        cells: list[RenderableType] = [
            file_cell(row.file[len(folder) :], console),
            Text(f"{row.mean:.2f}", style=style),
            Text(f"{row.std:.2f}", style="dim"),
        ]
        if percentiles:
            rank = "–" if row.percentile is None else percentile_text(row.percentile)
            cells.append(Text(rank if unicode else rank.replace("–", "-"), style=style))
        if ratings:
            bars = histogram(row.distribution, blocks=blocks)
            cells.append(Text(bars, style="cyan"))
        table.add_row(*cells)
    return table


def print_scores(rows: Sequence[Row], console: Console, *, title: str | None = None) -> None:
    """Print the table, and below it what its columns mean.

    Args:
        rows: what to show, in order; with none, one line says so.
        console: where to.
        title: a line above.
    """
    if not rows:
        console.print("No photo to show.")
        return
    longest = max(cell_len(as_shown(row.file, console)) for row in rows)
    console = unclipped(console, longest + NUM_RATINGS + 50)
    table = score_table(rows, console, title=title)
    if not fits(table, console):
        # Half a histogram would look like a whole one.
        table = score_table(rows, console, title=title, ratings=False)
    console.print(table)
    legend = "mean: 1 (worst) to 10 (best)"
    if any(row.percentile is not None for row in rows):
        legend += "; pct: share of the reference photos that score lower, in %"
    folder = common_folder([row.file for row in rows])
    if len(folder) > 1:
        legend = f"files in {printable(folder)}\n{legend}"
    console.print(Text(legend, style="dim"), soft_wrap=True)


def _colour(percentile: float | None) -> str:
    if percentile is None:
        return "bold"
    return next(colour for limit, colour in _COLOURS if percentile < limit)
