"""The journal of a run: what has been scored so far, so that a killed run can go on.

One line of JSON for each photo, appended as results come. A kill can at worst cut the last line
short; that line is dropped, and its photo scored again. The finished run is written from the
journal in one piece, in the order of the photos, so that a run killed and resumed gives the same
file.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from nima_client._files import make_parent, naming_full
from nima_client.library.rows import FailedRow, Row
from nima_client.library.run import Outcome
from nima_client.library.sources import Photo

_FORMAT = 1


class JournalError(ValueError):
    """A journal that cannot be continued; the message says why and what to do."""


class Journal:
    """An append-only file beside the output.

    Args:
        path: the journal.

    Attributes:
        done: names of the photos that it holds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: set[str] = set()
        self._failed: set[str] = set()
        self._names: list[str] = []  # as the lines come
        self._places: dict[str, int] = {}
        self._file: IO[bytes] | None = None

    @property
    def failed(self) -> int:
        """How many of them have no score."""
        return len(self._failed)

    @classmethod
    def beside(cls, output: Path) -> Journal:
        """The journal of the run that writes ``output``; if that is a link, beside its target."""
        if output.is_symlink():
            output = Path(os.path.realpath(output))
        return cls(output.with_name(output.name + ".journal"))

    def open(
        self,
        checkpoint_sha256: str,
        *,
        precision: str = "",
        max_side: int | None = None,
        resume: bool,
    ) -> None:
        """Start a journal, or continue one.

        Args:
            checkpoint_sha256: weights of the server; one file never mixes two.
            precision: how the server runs them; nor does it mix int8 with anything else.
            max_side: as of the client; nor does it mix photos made smaller with others.
            resume: continue what is there; else there must be nothing.

        Raises:
            JournalError: a journal is there and ``resume`` is false, it is of other weights, of
                another precision or ``max_side``, or another run is writing it.
        """
        # FP32 and an engine's FP16 agree to the second digit, as photos are ranked; int8 does not.
        precision = precision if precision == "int8" else ""
        make_parent(self.path)
        file = self._claim()
        begun = file.seek(0, os.SEEK_END) > 0
        if begun and not resume:
            self.close()
            raise JournalError(
                f"{self.path} is left from a run that did not end: add --resume to go on with it, "
                "or delete it to start again"
            )
        if begun:
            self._recover(file, checkpoint_sha256, precision, max_side)
        if file.seek(0, os.SEEK_END) == 0:
            header: dict[str, Any] = {"journal": _FORMAT, "checkpoint_sha256": checkpoint_sha256}
            header |= {"precision": precision} if precision else {}
            self._append(header | ({"max_side": max_side} if max_side else {}))

    def left(self, photos: Iterable[Photo]) -> Iterator[Photo]:
        """The photos without a result here. From then on results come in the order of them all.

        An archive or a folder that failed and has been repaired is its photos now.
        """
        for place, photo in enumerate(photos):
            self._places.setdefault(photo.name, place)
            if photo.name not in self.done:
                yield photo
        self._failed -= self._repaired()

    def add(self, outcome: Outcome) -> None:
        """Append one result. It outlives this process as soon as this returns."""
        kind = "score" if isinstance(outcome, Row) else "failure"
        self._append({kind: outcome.to_dict()})
        self._count(outcome)

    def rows(self) -> Iterator[Row]:
        """The scores, in order."""
        return (outcome for outcome in self._outcomes() if isinstance(outcome, Row))

    def failures(self) -> Iterator[FailedRow]:
        """The failures, in order."""
        return (outcome for outcome in self._outcomes() if isinstance(outcome, FailedRow))

    def close(self) -> None:
        """Close the file; it stays."""
        if self._file is not None:
            file, self._file = self._file, None
            with naming_full(self.path):  # it writes again what a full disk did not take
                file.close()

    def remove(self) -> None:
        """Delete the journal of a finished run."""
        if os.name == "nt":  # which deletes no open file
            self.close()
        # Elsewhere before the lock is let go: it would be that of the next run by then.
        self.path.unlink(missing_ok=True)
        self.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _append(self, entry: dict[str, Any]) -> None:
        assert self._file is not None
        with naming_full(self.path):
            self._file.write(json.dumps(entry).encode() + b"\n")
            self._file.flush()

    def _claim(self) -> IO[bytes]:
        """Open it and keep a second run out; the kernel lets go when this process ends."""
        while True:
            file = self._file = self.path.open("a+b")
            try:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.close()
                raise JournalError(f"{self.path}: another run is writing the same output") from None
            except (ModuleNotFoundError, OSError):  # Windows; a file system without locks
                return file
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                    return file
            # The other run ended between the two calls, and deleted what was opened.
            self.close()

    def _count(self, outcome: Outcome) -> None:
        self._names.append(outcome.file)
        self.done.add(outcome.file)
        if isinstance(outcome, FailedRow):
            self._failed.add(outcome.file)

    def _repaired(self) -> set[str]:
        """Failures that this run did not meet again, but photos inside."""
        gone = self._failed - self._places.keys()
        inside: set[str] = set()
        for name in self._places if gone else ():
            while name := name.rpartition("/")[0]:
                inside.add(name)
        return gone & inside

    def _recover(
        self, file: IO[bytes], checkpoint_sha256: str, precision: str, max_side: int | None
    ) -> None:
        whole = 0
        file.seek(0)
        for number, line in enumerate(file):
            if not line.endswith(b"\n"):
                break
            if number == 0:
                self._check_header(line, checkpoint_sha256, precision, max_side)
            else:
                self._count(self._parse(line, number + 1))
            whole += len(line)
        file.truncate(whole)

    def _check_header(
        self, line: bytes, checkpoint_sha256: str, precision: str, max_side: int | None
    ) -> None:
        try:
            header = json.loads(line)
            known = header["journal"] == _FORMAT
            theirs = str(header["checkpoint_sha256"])
        except (ValueError, KeyError, TypeError, RecursionError):
            known, theirs = False, ""
        if not known:
            raise JournalError(f"{self.path} is not a journal of this program: delete or rename it")
        if theirs != checkpoint_sha256:
            raise JournalError(
                f"{self.path} holds scores of the weights {theirs[:12]}…, the server has "
                f"{checkpoint_sha256[:12]}…: one file cannot mix them; delete it to start again"
            )
        if header.get("precision", "") != precision:
            raise JournalError(
                f"{self.path} holds scores {'without' if precision else 'with'} int8, the server "
                f"has it {'on' if precision else 'off'}: one file cannot mix them; delete it to "
                "start again"
            )
        if (earlier := header.get("max_side")) != max_side:
            how = f"with --max-side {earlier}" if earlier else "without --max-side"
            raise JournalError(
                f"{self.path} holds scores {how}: one file cannot mix them; go on as it began, or "
                "delete it to start again"
            )

    def _parse(self, line: bytes, number: int) -> Outcome:
        try:
            entry = json.loads(line)
            if "score" in entry:
                return Row.from_dict(entry["score"])
            failure = FailedRow(**entry["failure"])
            if not all(isinstance(text, str) for text in failure.to_dict().values()):
                raise TypeError("a failure is of texts")
            return failure
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise JournalError(f"{self.path}: line {number} is damaged: {error}") from error

    def _outcomes(self) -> Iterator[Outcome]:
        # Photos that this run was not asked for come first.
        places = [self._places.get(name, -1) for name in self._names]
        # While it is open, not by the path, which somebody may have deleted or replaced.
        with contextlib.nullcontext(self._file) if self._file else self.path.open("rb") as file:
            file.seek(0)
            starts = array("Q", itertools.accumulate(map(len, file)))
            for number in sorted(range(len(places)), key=places.__getitem__):
                file.seek(starts[number])
                outcome = self._parse(file.readline(), number + 2)
                if isinstance(outcome, Row) or outcome.file in self._failed:
                    yield outcome
