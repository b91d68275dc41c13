"""``nima compare``: two sets of scores of the same photos."""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import scipy  # noqa: F401  (missing, it names the extra)
import typer
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nima_client._os_errors import in_words
from nima_client.cli._console import (
    add_file_column,
    as_shown,
    file_cell,
    fits,
    open_console,
    unclipped,
)
from nima_client.cli._job import say
from nima_client.cli._output import ready_stdout
from nima_client.library.compare import Comparison, Difference, compare
from nima_client.library.files import read_rows
from nima_client.library.text import common_folder, printable

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


_OTHER_COLUMNS = 60
"""Cells that a line needs beside a file's name or a fact."""


class Output(str, enum.Enum):
    """How the comparison is written."""

    table = "table"
    json = "json"


@app.command("compare")
def command(
    first: Annotated[Path, typer.Argument(help="Scores: a file that nima score wrote.")],
    second: Annotated[Path, typer.Argument(help="Scores of the same photos by another model.")],
    form: Annotated[Output, typer.Option("--format", "-f")] = Output.table,
    top: Annotated[int, typer.Option(min=0, help="Show the N largest changes.")] = 10,
) -> None:
    """Compare two sets of scores: two models, two servers, or one before and after a change."""
    errors = open_console(stderr=True)
    try:
        ready_stdout()
        result = compare(read_rows(first), read_rows(second))
    except (ValueError, OSError) as error:
        say(errors, f"nima compare: {in_words(error)}")
        raise typer.Exit(2) from None
    if form is Output.json:
        print(json.dumps(result.to_dict(), indent=1))
        return
    _print(result, top, open_console())


def _print(result: Comparison, top: int, console: Console) -> None:
    def correlation(value: float | None) -> str:
        return "not defined" if value is None else f"{value:.4f}"

    facts = {
        "first": printable(", ".join(result.first_weights)) or "not told",
        "second": printable(", ".join(result.second_weights)) or "not told",
        "photos in both": str(result.photos),
        "only in the first": str(len(result.only_first)),
        "only in the second": str(len(result.only_second)),
        "Spearman of the means": correlation(result.spearman),
        "Pearson of the means": correlation(result.pearson),
        "Kendall of the means": correlation(result.kendall),
        "mean change": f"{result.mean_change:+.4f}",
        "mean absolute change": f"{result.mean_absolute_change:.4f}",
        "largest change": f"{result.largest_change:.4f}",
        "EMD (r = 2)": f"{result.emd:.4f}",
    }
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(justify="right")
    for name, value in facts.items():
        grid.add_row(name, Text(value))  # a checkpoint's name may hold brackets
    changes = [d for d in result.differences[:top] if d.change != 0]
    texts = [*facts.values(), *(as_shown(change.file, console) for change in changes)]
    console = unclipped(console, max(map(cell_len, texts)) + _OTHER_COLUMNS)
    console.print(grid)
    if not changes:
        return
    table = _changes_table(changes, console)
    if not fits(table, console):
        # Half a figure would look like a whole one.
        table = _changes_table(changes, console, emd=False)
    console.print(table)


def _changes_table(changes: Sequence[Difference], console: Console, emd: bool = True) -> Table:
    folder = common_folder([change.file for change in changes])
    table = Table(box=box.SIMPLE_HEAD, title="Largest changes", title_justify="left")
    add_file_column(table)
    for name in ("first", "second", "change", *(["EMD"] if emd else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for change in changes:
        cells = [
            file_cell(change.file[len(folder) :], console),
            f"{change.first:.2f}",
            f"{change.second:.2f}",
            Text(f"{change.change:+.2f}", style="green" if change.change > 0 else "red"),
            f"{change.emd:.3f}",
        ]
        table.add_row(*cells[: len(table.columns)])
    return table
