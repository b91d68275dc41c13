"""What ``nima score`` does, once its options are understood."""

from __future__ import annotations

import enum
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from nima_client._client import NimaClient
from nima_client._files import check_output_folder, is_stream
from nima_client._os_errors import in_words
from nima_client.cli._console import open_console
from nima_client.cli._progress import Tracker, tracking
from nima_client.cli._table import print_scores
from nima_client.errors import NimaError
from nima_client.library.actions import Action, place, rate, without_file
from nima_client.library.files import format_of, read_rows, write_failures, write_rows, write_text
from nima_client.library.folders import is_photo_or_archive
from nima_client.library.formats import passed_over_text
from nima_client.library.journal import Journal
from nima_client.library.rows import FailedRow, Row
from nima_client.library.run import Outcome, certain_outcomes
from nima_client.library.select import Selection
from nima_client.library.sources import Sources
from nima_client.library.text import counted, printable


class Format(str, enum.Enum):
    """How scores are written."""

    table = "table"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"
    parquet = "parquet"


@dataclass
class Job:
    """One run of ``nima score``.

    Attributes:
        sources: what to score.
        selection: which results to keep, in which order.
        form: how they are written.
        output: file for them; None for standard output.
        failures_file: file for the photos without a score, or None.
        resume: go on with an interrupted run of the same output.
        xmp: write star ratings of the chosen photos into sidecars.
        placement: what to do with the chosen photos, and where to.
        errors: console of standard error.
        failures: the photos without a score so far.
    """

    sources: Sources
    selection: Selection
    form: Format
    output: Path | None
    failures_file: Path | None
    resume: bool
    xmp: bool
    placement: tuple[Action, Path] | None
    errors: Console
    failures: list[FailedRow] = field(default_factory=list)
    _gone: NimaError | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.resume and self.output is None:
            raise ValueError("--resume needs --output: there is no file to go on with")
        for path in (self.output, self.failures_file):
            if path is not None and path.is_dir():
                raise ValueError(f"{path} is a folder: name a file")
        if self.resume and self._to_stream:
            raise ValueError(f"--resume: {self.output} is no file to go on with")
        self._check_failures_file()
        self._check_photos_stay()
        if self.placement is not None:
            check_output_folder(self.placement[1])
        if self.form is Format.parquet:
            import pyarrow  # noqa: F401  (missing, it names the extra now, not after the scores)

    def _check_failures_file(self) -> None:
        if self.failures_file is None or self.output is None or self._to_stream:
            return
        theirs = (self.output, Journal.beside(self.output).path)
        if os.path.realpath(self.failures_file) in map(os.path.realpath, theirs):
            raise ValueError(f"--failures {self.failures_file} would overwrite the scores")

    def _check_photos_stay(self) -> None:
        """Refuse to write over a photo: the shell makes one of the first of ``-o *.jpg``."""
        for path in (self.output, self.failures_file):
            if path is None or not path.is_file():
                continue
            if is_photo_or_archive(path.name) or self._is_source(path):
                raise ValueError(f"{path} would be overwritten, and is a photo: name another file")

    def _is_source(self, path: Path) -> bool:
        place = path.stat()
        for source in (*self.sources.files, *self.sources.archives):
            with suppress(OSError):  # gone: told when its turn comes
                if os.path.samestat(place, source.stat()):
                    return True
        return False

    @property
    def _acts(self) -> bool:
        """Whether something is to be done with the chosen photos."""
        return self.xmp or self.placement is not None

    @property
    def _to_stream(self) -> bool:
        return self.output is not None and is_stream(self.output)

    @property
    def finished(self) -> bool:
        """Whether there is nothing to resume: the output is there, whole, and no journal is."""
        if not self.resume or self.output is None:
            return False
        return self.output.exists() and not Journal.beside(self.output).path.exists()

    def run(self, client: NimaClient) -> int:
        """Score everything; how many photos have no score, or could not be dealt with."""
        if self.output is None:
            chosen: Iterable[Row] = self._show(client)
            self._write_failures(self.failures)
            if self._gone is not None:
                raise self._gone
            return len(self.failures) + self._act(list(chosen))
        with self._journal(self.output) as journal:
            self._score_into(journal, client)
            chosen = self.selection.apply(journal.rows())
            if self._acts:
                chosen = list(chosen)
            write_rows(chosen, self.output, self.form.value)
            self._write_failures(journal.failures())
            not_done = self._act(chosen) if isinstance(chosen, list) else 0
            # Last: while it is there, --resume does again what did not come to its end.
            journal.remove()
            return journal.failed + not_done

    def run_again(self) -> int:
        """Deal with the photos of a finished run as asked; with how many that could not be done."""
        assert self.output is not None
        say(self.errors, f"{self.output} is finished: without --resume it is scored anew")
        if not self._acts:
            return 0
        return self._act(list(self.selection.apply(read_rows(self.output, self.form.value))))

    @contextmanager
    def _journal(self, output: Path) -> Iterator[Journal]:
        if not self._to_stream:
            with Journal.beside(output) as journal:
                yield journal
            return
        # Nothing is put beside a device, and nothing could be resumed.
        with TemporaryDirectory() as folder, Journal(Path(folder) / "journal") as journal:
            yield journal

    def _score_into(self, journal: Journal, client: NimaClient) -> None:
        served = client.model_info().served
        journal.open(
            served.checkpoint_sha256,
            precision=served.precision,
            max_side=client._options.max_side,
            resume=self.resume,
        )
        earlier = len(journal.done)
        with tracking(self.errors, self.sources.known_total, done=earlier) as track:
            left = journal.left(self.sources)
            for _, outcome in track(certain_outcomes(client, left)):
                journal.add(outcome)
                self._report(outcome)
            self._finish(track, earlier)

    def _scores(self, client: NimaClient, track: Tracker) -> Iterator[Row]:
        try:
            for _, outcome in track(certain_outcomes(client, self.sources)):
                self._report(outcome)
                if isinstance(outcome, Row):
                    yield outcome
        except NimaError as error:
            # What was scored is shown first, and what failed is written.
            self._gone = error

    def _report(self, outcome: Outcome) -> None:
        if isinstance(outcome, FailedRow):
            self.failures.append(outcome)
            say(self.errors, f"{outcome.file}: {outcome.code}: {outcome.message}")

    def _show(self, client: NimaClient) -> list[Row]:
        """Score and write to standard output; the chosen rows where they are needed again."""
        kept: list[Row] = []
        # Results that run over the screen as they come leave no place for a bar.
        streaming = self.form is not Format.table and sys.stdout.isatty()
        with tracking(self.errors, self.sources.known_total, bar=not streaming) as track:
            chosen = self.selection.apply(self._scores(client, track))
            if self.form is Format.table or self._acts:
                chosen = kept = list(chosen)
            if self.form is not Format.table:
                write_text(chosen, sys.stdout, self.form.value)
                sys.stdout.flush()
        if self.form is Format.table:
            print_scores(kept, open_console())
        self._finish(track)
        return kept

    def _act(self, chosen: Sequence[Row]) -> int:
        """Write sidecars and place photos; with how many that could not be done."""
        failed: set[str] = set()

        def tell(row: Row, error: Exception) -> None:
            failed.add(row.file)
            why = in_words(error).removeprefix(f"{row.file}: ")
            say(self.errors, f"{row.file}: {why}")

        def tell_of_sidecar(row: Row, error: Exception) -> None:
            # What is not there has been moved earlier; or it is told below.
            if self.placement is None or not isinstance(error, FileNotFoundError):
                tell(row, error)

        named = self.sources.named
        archived = without_file(chosen, named) if self._acts else 0
        # Sidecars first: they go along with their photos.
        if self.xmp:
            written = rate(chosen, named=named, report=tell_of_sidecar)
            text = f"{counted(written, 'sidecar')} written"
            self.errors.print(text, style="dim", highlight=False, soft_wrap=True)
        if self.placement is not None:
            action, folder = self.placement
            placed = place(chosen, folder, action, named=named, report=tell)
            photos = counted(len(placed), "photo")
            say(self.errors, f"{action.value}: {photos} into {folder}")
        if archived:
            say(self.errors, f"{counted(archived, 'photo')} inside archives passed over")
        return len(failed)

    def _write_failures(self, failures: Iterable[FailedRow]) -> None:
        if self.failures_file is not None:
            write_failures(failures, self.failures_file)

    def _finish(self, track: Tracker, earlier: int = 0) -> None:
        failed = len(self.failures)
        scored = track.count - failed
        text = f"{counted(scored, 'photo')} scored in {track.seconds:.1f} s"
        if scored:
            text += f" ({scored / max(track.seconds, 1e-9):.1f} photos/s)"
        if earlier:
            text += f", {earlier} were there already"
        if failed:
            text += f", {failed} without a score"
        self.errors.print(text, style="dim", highlight=False, soft_wrap=True)
        if self.sources.passed_over:
            say(self.errors, passed_over_text(self.sources.passed_over))


def choose_format(form: Format | None, output: Path | None) -> Format:
    """The format asked for, or that the output's ending names, or a table.

    Raises:
        ValueError: format and output do not go together.
    """
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


def has_begun(output: Path) -> bool:
    """Whether there is something of a run that writes this file: its scores, or its journal."""
    return output.exists() or Journal.beside(output).path.exists()


def say(console: Console, line: str) -> None:
    """One line, whatever a file name may hold."""
    # Nor is a part between colons the name of an emoji.
    console.print(printable(line), markup=False, emoji=False, highlight=False, soft_wrap=True)
