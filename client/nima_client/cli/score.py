"""``nima score``: scores for photos, folders, patterns and tar shards."""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from nima_client._client import NimaClient
from nima_client.cli._progress import Tracker, tracking
from nima_client.cli._server import connected_client
from nima_client.cli._table import print_scores
from nima_client.errors import NimaError
from nima_client.library.files import format_of, write_failures, write_rows, write_text
from nima_client.library.journal import Journal
from nima_client.library.rows import FailedRow, Row
from nima_client.library.run import Outcome, score_photos
from nima_client.library.select import SORT_KEYS, Selection
from nima_client.library.sources import Photo, Sources, find_photos

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

EXIT_SOME_FAILED = 1
EXIT_USAGE = 2
EXIT_NO_SERVER = 3


class Format(str, enum.Enum):
    """How scores are written."""

    table = "table"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"
    parquet = "parquet"


@app.command()
def score(
    paths: Annotated[
        list[str],
        typer.Argument(help="Photos, folders, patterns ('trip/**/*.jpg') or tar shards."),
    ],
    form: Annotated[
        Optional[Format],  # noqa: UP045  (typer evaluates it on 3.10)
        typer.Option("--format", "-f", help="Default: what OUTPUT's ending says, else table."),
    ] = None,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--output", "-o", help="File for the scores; else standard output."),
    ] = None,
    url: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="host:port of the server (gRPC). Default: $NIMA_URL, a server on "
            "127.0.0.1:8001, or the embedded one, started for this run."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run of the same OUTPUT.")
    ] = False,
    failures: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="File for the photos that have no score, as JSON Lines."),
    ] = None,
    recursive: Annotated[bool, typer.Option(help="Look into the folders of folders.")] = True,
    sort: Annotated[
        str, typer.Option(help=f"Order: {', '.join(SORT_KEYS)}; -mean for downwards.")
    ] = "",
    top: Annotated[Optional[int], typer.Option(min=0, help="Only the N best.")] = None,  # noqa: UP045
    bottom: Annotated[Optional[int], typer.Option(min=0, help="Only the N worst.")] = None,  # noqa: UP045
    minimum: Annotated[
        Optional[float], typer.Option("--min", help="Only means of at least this.")  # noqa: UP045
    ] = None,
    maximum: Annotated[
        Optional[float], typer.Option("--max", help="Only means of at most this.")  # noqa: UP045
    ] = None,
    max_side: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=64, help="Make larger photos smaller before upload (pixels)."),
    ] = None,
    in_flight: Annotated[int, typer.Option(min=1, help="Requests under way at once.")] = 16,
) -> None:
    """Predict how people would rate photos, from 1 to 10.

    A photo that cannot be scored is one line on standard error, and the exit status is then 1 at
    the end; it is 3 when the server is gone (what was scored is kept: --resume).
    """
    errors = Console(stderr=True)
    try:
        selection = Selection(minimum, maximum, top, bottom, sort)
        chosen = _format(form, output)
        if resume and output is None:
            raise ValueError("--resume needs --output: there is no file to go on with")
        sources = find_photos(paths, recursive=recursive)
        job = _Job(sources, selection, chosen, output, failures, resume, errors)
        with connected_client(url, errors, max_side=max_side, max_in_flight=in_flight) as client:
            failed = job.run(client)
    except (ValueError, OSError) as error:
        _say(errors, f"nima score: {error}")
        raise typer.Exit(EXIT_USAGE) from None
    except NimaError as error:
        _say(errors, f"nima score: {error}")
        raise typer.Exit(EXIT_NO_SERVER) from None
    if failed:
        raise typer.Exit(EXIT_SOME_FAILED)


class _Job:
    """One run of the command."""

    def __init__(
        self,
        sources: Sources,
        selection: Selection,
        form: Format,
        output: Path | None,
        failures: Path | None,
        resume: bool,
        errors: Console,
    ) -> None:
        self.sources = sources
        self.selection = selection
        self.form = form
        self.output = output
        self.failures_file = failures
        self.resume = resume
        self.errors = errors
        self.failures: list[FailedRow] = []

    def run(self, client: NimaClient) -> int:
        """Score everything; how many photos have no score."""
        if self.output is None:
            with tracking(self.errors, self.sources.known_total) as track:
                self._print(self._scores(client, iter(self.sources), track))
                self._finish(track)
            failures: Iterable[FailedRow] = self.failures
            failed = len(self.failures)
        else:
            with Journal.beside(self.output) as journal:
                self._score_into(journal, client)
                write_rows(self.selection.apply(journal.rows()), self.output, self.form.value)
                failed = journal.failed
                failures = list(journal.failures())
                self._write_failures(failures)
                journal.remove()
            return failed
        self._write_failures(failures)
        return failed

    def _score_into(self, journal: Journal, client: NimaClient) -> None:
        journal.open(client.model_info().served.checkpoint_sha256, resume=self.resume)
        earlier = len(journal.done)
        left = (photo for photo in self.sources if photo.name not in journal.done)
        with tracking(self.errors, self.sources.known_total, done=earlier) as track:
            for outcome in track(score_photos(client, left)):
                journal.add(outcome)
                self._report(outcome)
            self._finish(track, earlier)

    def _scores(self, client: NimaClient, photos: Iterator[Photo], track: Tracker) -> Iterator[Row]:
        for outcome in track(score_photos(client, photos)):
            self._report(outcome)
            if isinstance(outcome, Row):
                yield outcome

    def _report(self, outcome: Outcome) -> None:
        if isinstance(outcome, FailedRow):
            self.failures.append(outcome)
            _say(self.errors, f"{outcome.file}: {outcome.code}: {outcome.message}")

    def _print(self, rows: Iterable[Row]) -> None:
        chosen = self.selection.apply(rows)
        if self.form is Format.table:
            shown = list(chosen)
            print_scores(shown, Console())
        else:
            write_text(chosen, sys.stdout, self.form.value)
            sys.stdout.flush()

    def _write_failures(self, failures: Iterable[FailedRow]) -> None:
        if self.failures_file is not None:
            write_failures(failures, self.failures_file)

    def _finish(self, track: Tracker, earlier: int = 0) -> None:
        failed = len(self.failures)
        text = f"{track.count - failed} photos scored in {track.seconds:.1f} s"
        if track.count:
            text += f" ({track.rate:.1f} photos/s)"
        if earlier:
            text += f", {earlier} were there already"
        if failed:
            text += f", {failed} without a score"
        self.errors.print(text, style="dim", highlight=False)


def _format(form: Format | None, output: Path | None) -> Format:
    if form is None:
        by_name = format_of(output) if output is not None else None
        if output is not None and by_name is None:
            raise ValueError(f"{output}: say --format json, jsonl, csv or parquet")
        return Format(by_name) if by_name else Format.table
    if output is None and form is Format.parquet:
        raise ValueError("--format parquet needs --output FILE")
    if output is not None and form is Format.table:
        raise ValueError("--format table is for the screen: a file takes json, jsonl, csv, parquet")
    return form


def _say(console: Console, line: str) -> None:
    """One line, whatever a file name may hold."""
    text = "".join(c if c.isprintable() else "�" for c in line)
    console.print(text, markup=False, highlight=False, soft_wrap=True)
