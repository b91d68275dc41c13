"""``nima report``: one HTML page that ranks photos."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Optional

import jinja2  # noqa: F401  (missing, it names the extra at once, not after the thumbnails)
import typer

from nima_client._files import atomic_file, check_output, is_stream
from nima_client._os_errors import in_words
from nima_client.cli._console import open_console
from nima_client.cli._job import say
from nima_client.cli._progress import tracking
from nima_client.library.files import read_rows
from nima_client.library.rows import Row
from nima_client.library.text import counted
from nima_client.report import ReportOptions, Thumbnails, build_page

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command()
def report(
    results: Annotated[
        list[Path], typer.Argument(help="Files that nima score wrote (json, jsonl, csv, parquet).")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Its heading.")] = "Photo scores",
    root: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder that relative file names start from; else the current one."),
    ] = None,
    limit: Annotated[
        Optional[int], typer.Option(min=1, help="Only the N best photos.")  # noqa: UP045
    ] = None,
    side: Annotated[int, typer.Option(min=64, max=1024, help="Thumbnails' longest side.")] = 320,
) -> None:
    """Make one self-contained HTML page: a ranked gallery with every photo's predicted ratings.

    The page needs no network and no other file. Its links to the photos are relative for those
    beside the page or in folders there, which may be moved with it. Photos that are gone keep their
    place, without a picture.
    """
    errors = open_console(stderr=True)
    try:
        rows: dict[str, Row] = {}
        doubled = 0
        for path in results:
            for row in read_rows(path):
                doubled += row.file in rows
                rows[row.file] = row
        _check_output(output, results)
        shown = len(rows) if limit is None else min(limit, len(rows))
        with tracking(errors, shown, doing="Pictures") as track:
            options = ReportOptions(title, limit, _home(output))
            pictures = Thumbnails(side, root)
            page = build_page(list(rows.values()), options, pictures, track)
        with atomic_file(output) as file:
            file.write(page)
    except (ValueError, OSError) as error:
        say(errors, f"nima report: {in_words(error)}")
        raise typer.Exit(2) from None
    size = len(page.encode()) / 1e6
    photos = counted(shown, "photo")
    if pictures.missing:
        photos += f" ({pictures.missing} not found or unreadable: relative names start from --root)"
    if doubled:
        say(errors, f"{counted(doubled, 'score')} replaced by later ones of the same names")
    say(errors, f"{output}: {photos}, {size:.1f} MB")


def _home(output: Path) -> Path | None:
    """The folder in which a browser will find the page; None where that cannot be told."""
    # A page behind a link can be opened in two places.
    return None if is_stream(output) or output.is_symlink() else output.parent


def _check_output(output: Path, results: Sequence[Path]) -> None:
    """Refuse, before minutes of decoding, a page that could not be written.

    Raises:
        ValueError: it is a folder, or one of the files that it is made of.
        OSError: its folder cannot be made, or no file in it.
    """
    if output.is_dir():
        raise ValueError(f"{output} is a folder: name a file")
    check_output(output)
    final = Path(os.path.realpath(output))
    if final in map(Path, map(os.path.realpath, results)):
        raise ValueError(f"the page would overwrite the scores in {output}")
