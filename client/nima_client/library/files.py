"""Scores in files: JSON, JSON Lines, CSV and Parquet, written whole or not at all."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from nima_client._files import atomic_file
from nima_client._scales import MEAN, PERCENTILE, PROBABILITY, STD
from nima_client.library.rows import PROBABILITIES, FailedRow, Row

FORMATS = ("json", "jsonl", "csv", "parquet")
_BY_SUFFIX = {".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
_BY_SUFFIX |= {".parquet": "parquet", ".pq": "parquet"}
_PARQUET_ROWS = 8192
CSV_COLUMNS = (
    "file", "mean", "std", "percentile", *PROBABILITIES,
    "model_version", "checkpoint", "checkpoint_sha256",
)  # fmt: skip


def format_of(path: Path) -> str | None:
    """The format that a file's ending names, or None."""
    return _BY_SUFFIX.get(path.suffix.lower())


def write_rows(rows: Iterable[Row], path: Path, form: str) -> None:
    """Write a file of scores.

    Args:
        rows: the scores; read once, in a stream.
        path: the file; replaced only when the new one is complete.
        form: one of :data:`FORMATS`.

    Raises:
        ModuleNotFoundError: Parquet without pyarrow.
    """
    if form == "parquet":
        _write_parquet(rows, path)
        return
    with atomic_file(path) as file:
        write_text(rows, file, form)


def write_text(rows: Iterable[Row], file: IO[str], form: str) -> None:
    """Write scores to an open text file in one of the text formats, each row as it comes."""
    if form == "jsonl":
        for row in rows:
            file.write(json.dumps(row.to_dict()) + "\n")
            file.flush()
    elif form == "json":
        file.write("[")
        for number, row in enumerate(rows):
            file.write((",\n " if number else "\n ") + json.dumps(row.to_dict()))
        file.write("\n]\n")
    elif form == "csv":
        # Up to Python 3.11 at least it quotes only the line ends that it writes itself: a name
        # with "\r" in it would be two records.
        writer = csv.DictWriter(_UnixLines(file), CSV_COLUMNS, lineterminator="\r\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(row.to_flat())
            file.flush()
    else:
        raise ValueError(f"unknown text format {form!r}")


class _UnixLines:
    r"""Takes records that end in ``\r\n`` and writes them to end in ``\n``."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, record: str) -> int:
        return self._file.write(record.removesuffix("\r\n") + "\n")


def write_failures(failures: Iterable[FailedRow], path: Path) -> None:
    """Write the photos without a score as JSON Lines; an empty file says that there are none."""
    with atomic_file(path) as file:
        for failure in failures:
            file.write(json.dumps(failure.to_dict()) + "\n")


def parquet_schema() -> Any:
    """Arrow schema of a file of scores."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("file", pa.string(), nullable=False),
            pa.field("mean", pa.float64(), nullable=False),
            pa.field("std", pa.float64(), nullable=False),
            pa.field("percentile", pa.float64()),
            pa.field("distribution", pa.list_(pa.float64()), nullable=False),
            pa.field("model_version", pa.string()),
            pa.field("checkpoint", pa.string()),
            pa.field("checkpoint_sha256", pa.string()),
        ]
    )


def _write_parquet(rows: Iterable[Row], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = parquet_schema()
    stream = iter(rows)
    with atomic_file(path, "wb") as file, pq.ParquetWriter(file, schema) as writer:
        while group := [row.to_dict() for row in itertools.islice(stream, _PARQUET_ROWS)]:
            writer.write_table(pa.Table.from_pylist(group, schema=schema))


_SCALES = {"mean": MEAN, "std": STD, "percentile": PERCENTILE}
_DAMAGE = (ValueError, TypeError, AttributeError, OverflowError, RecursionError, csv.Error)


def read_rows(path: Path, form: str | None = None) -> list[Row]:
    """Read a file of scores in any of the formats.

    Args:
        path: the file.
        form: one of :data:`FORMATS`; by default the one that its ending names.

    Raises:
        ValueError: not a file of scores; says which line or column.
        OSError: it cannot be read.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: score it first, nima score {path} -o scores.csv")
    form = form or format_of(path)
    if form is None:
        raise ValueError(f"{path}: cannot tell the format: name it {', '.join(_BY_SUFFIX)}")
    rows: list[Row] = []
    lines = _Lines()
    try:
        for fields in _records(path, form, lines):
            rows.append(_row(fields))
    except _DAMAGE as error:
        place = f"line {lines.read}" if lines.read else f"record {len(rows) + 1}"
        raise ValueError(f"{path}: {place}: {error}") from error
    return rows


def _row(fields: Any) -> Row:
    """A score as it is read, from a file that may not be one of ours.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(fields, dict):
        raise ValueError("not a score, as nima score writes it")
    if not isinstance(fields.get("file", ""), (str, int)):
        raise ValueError("the name of its file is no text")
    row = Row.from_dict(fields)
    for name, scale in _SCALES.items():
        value = getattr(row, name)
        if value is not None and not scale.holds((value,)):
            raise ValueError(f"{name} is {value:g}, and not within {scale.low:g} to {scale.high:g}")
    if not PROBABILITY.holds(row.distribution):
        raise ValueError("its distribution is not of probabilities, which are 0 to 1")
    return row


class _Lines:
    """Lines of a text as they are read: those of a CSV and of JSON Lines may be empty."""

    def __init__(self) -> None:
        self.read = 0

    def of(self, text: IO[str]) -> Iterator[str]:
        for line in text:
            self.read += 1
            yield line


def _records(path: Path, form: str, lines: _Lines) -> Iterator[dict[str, Any]]:
    if form == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        path.open("rb").close()  # of what cannot be opened, Arrow speaks as to programmers
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches():
                    yield from batch.to_pylist()
        except pa.ArrowInvalid as error:
            raise ValueError(f"not a Parquet file: {error}") from error
        except (pa.ArrowException, OSError) as error:  # damaged within, or encrypted
            raise ValueError(f"cannot be read as Parquet: {error}") from error
        return
    # Programs for tables put a byte order mark in front of what they save.
    with path.open(encoding="utf-8-sig", newline="") as text:
        if form == "csv":
            table = csv.DictReader(lines.of(text))
            if not table.fieldnames:
                raise ValueError("no scores in it, not even the names of the columns")
            if len(table.fieldnames) == 1:  # what programs for tables make of it in some countries
                raise ValueError("its columns are not separated by commas")
            yield from table
        elif form == "json":
            records = json.load(text)
            if not isinstance(records, list):
                raise ValueError("not a list of scores, as nima score writes it")
            yield from records
        else:
            yield from (json.loads(line) for line in lines.of(text) if line.strip())
