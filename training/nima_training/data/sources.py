"""Label files to one table.

Every reader returns a DataFrame with ``image_id`` (str), ``p1`` … ``p10`` (float64, sum 1),
``votes`` (float64, NaN where unknown), ``group`` (str: photos that must stay on one side of a
split) and ``tags`` (list of str). A malformed row is refused with its number, never repaired.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from nima_client._numbers import real, whole
from nima_training.data.maxent import maximum_entropy
from nima_training.data.rows import csv_rows

PROBABILITIES = [f"p{rating}" for rating in range(1, 11)]
AVA_COLUMNS = 15
# Probabilities written with six digits sum to 1 only so far.
SUM_TOLERANCE = 2e-3


class LabelError(ValueError):
    """A label file is malformed; the message names the file and the row."""


def label_text(path: Path) -> str:
    """The text of a label file, without the byte order mark that Windows' editors put first.

    Raises:
        LabelError: it is not UTF-8.
        OSError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise LabelError(f"{path.name} is not UTF-8 text ({error}): save it as UTF-8") from error


def distributions(values: np.ndarray, source: str, rows: Sequence[int] | None = None) -> np.ndarray:
    """Check counts or probabilities ``[N, 10]`` and normalise each row to sum 1.

    Args:
        values: non-negative counts, or probabilities.
        source: named in errors.
        rows: numbers of the rows in the file, for errors; default from 1 on.

    Raises:
        LabelError: NaN, infinite or negative value, or a row without votes.
    """
    values = np.asarray(values, dtype=np.float64)
    with np.errstate(over="ignore"):
        sums = values.sum(axis=1)
    for bad, reason in (
        (np.isnan(values).any(axis=1), "a rating is NaN or not a number"),
        (np.isinf(values).any(axis=1) | np.isposinf(sums), "a rating is infinite"),
        ((values < 0).any(axis=1), "a rating is negative"),
        (sums <= 0, "no votes at all"),
    ):
        if bad.any():
            raise LabelError(f"{source}, row {_row(rows, int(np.argmax(bad)))}: {reason}")
    return np.asarray(values / sums[:, None])


def _row(rows: Sequence[int] | None, index: int) -> int:
    return index + 1 if rows is None else rows[index]


def table(
    image_ids: Sequence[str],
    probabilities: np.ndarray,
    votes: Sequence[float] | np.ndarray,
    groups: Sequence[str] | None = None,
    tags: Sequence[list[str]] | None = None,
    source: str = "labels",
    rows: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Assemble the common table; duplicate ids are refused."""
    frame = pd.DataFrame(probabilities, columns=PROBABILITIES)
    frame.insert(0, "image_id", [str(image_id) for image_id in image_ids])
    frame["votes"] = np.asarray(votes, dtype=np.float64)
    frame["group"] = list(groups) if groups is not None else frame["image_id"]
    frame["tags"] = list(tags) if tags is not None else [[] for _ in range(len(frame))]
    repeated = frame["image_id"].duplicated()
    if repeated.any():
        index = int(np.argmax(repeated.to_numpy()))
        raise LabelError(
            f"{source}, row {_row(rows, index)}: image {frame['image_id'][index]} appears twice"
        )
    return frame


def read_ava(path: Path, tag_names: dict[int, str] | None = None) -> pd.DataFrame:
    """AVA.txt: index, image id, ten counts, two tag ids (0 = none), challenge id.

    The challenge becomes a tag ``challenge:<id>``.
    """
    rows: list[int] = []
    ids: list[str] = []
    counts: list[list[float]] = []
    tags: list[list[str]] = []
    names = tag_names or {}
    for number, line in enumerate(label_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        fields = line.split()
        if len(fields) != AVA_COLUMNS:
            raise LabelError(
                f"{path.name}, row {number}: {len(fields)} columns, AVA.txt has {AVA_COLUMNS}"
            )
        try:
            image_id, *others, challenge = (whole(fields[column]) for column in (1, 12, 13, 14))
            counts.append([real(field) for field in fields[2:12]])
        except ValueError as error:
            raise LabelError(f"{path.name}, row {number}: {error}") from error
        rows.append(number)
        ids.append(str(image_id))
        tags.append(
            [names.get(tag, f"tag:{tag}") for tag in others if tag > 0] + [f"challenge:{challenge}"]
        )
    if not rows:
        raise LabelError(f"{path.name} holds no rows")
    values = np.array(counts)
    probabilities = distributions(values, path.name, rows)
    return table(ids, probabilities, values.sum(axis=1), tags=tags, source=path.name, rows=rows)


def read_label_json(path: Path) -> pd.DataFrame:
    """The JSON list of idealo: of ``{"image_id": …, "label": [ten counts or probabilities]}``."""
    try:
        samples = json.loads(label_text(path))
    except (ValueError, RecursionError) as error:
        raise LabelError(f"{path.name} is not valid JSON: {error}") from error
    if not isinstance(samples, list) or not samples:
        raise LabelError(f"{path.name}: expected a non-empty list of samples")
    labels = []
    for number, sample in enumerate(samples, start=1):
        label = sample.get("label") if isinstance(sample, dict) else None
        named = isinstance(sample, dict) and type(sample.get("image_id")) in (str, int)
        if not isinstance(label, list) or len(label) != 10 or not named:
            raise LabelError(
                f'{path.name}, row {number}: needs "image_id" and a "label" of ten numbers'
            )
        try:
            if not {type(value) for value in label} <= {int, float, type(None)}:
                raise TypeError
            labels.append([np.nan if value is None else float(value) for value in label])
        except (TypeError, OverflowError) as error:
            raise LabelError(
                f"{path.name}, row {number}: its label holds something that is not a number"
            ) from error
    values = np.array(labels, dtype=np.float64)
    ids = [str(sample["image_id"]) for sample in samples]
    return table(ids, distributions(values, path.name), _votes(values), source=path.name)


def read_tid2013(folder: Path) -> pd.DataFrame:
    """TID2013: ``mos_with_names.txt``, mean opinion scores and file names.

    Scores 0..9 become ratings 1..10; each becomes the maximum-entropy distribution with that mean.
    ``mos_std.txt`` is not read: it holds the spread of the mean's estimate (0 to 0.3), not that of
    the raters' scores. The group is the reference image (``i01`` of ``i01_03_2.bmp``), so that no
    scene is on both sides of a split.
    """
    names = folder / "mos_with_names.txt"
    if not names.is_file():
        raise LabelError(f"{folder} has no mos_with_names.txt: it is not TID2013")
    ids, numbers, rows, groups, tags = [], [], [], [], []
    for number, line in enumerate(label_text(names).splitlines(), start=1):
        if not (fields := line.split()):
            continue
        try:
            mos, name = real(fields[0]), fields[1]
            rows.append(maximum_entropy(mos + 1))
        except (ValueError, IndexError) as error:
            raise LabelError(f"mos_with_names.txt, row {number}: {error}") from error
        stem = Path(name).stem.lower()
        numbers.append(number)
        ids.append(stem)
        groups.append(stem.split("_")[0])
        tags.append(["distortion:" + stem.split("_")[1]] if stem.count("_") == 2 else [])
    if not ids:
        raise LabelError(f"{names.name} holds no rows")
    unknown = np.full(len(ids), np.nan)
    return table(ids, np.array(rows), unknown, groups, tags, names.name, numbers)


def read_own(path: Path) -> pd.DataFrame:
    """A CSV (also ``.csv.gz``) or Parquet of one's own.

    Needs ``image_id`` and either ``p1`` … ``p10`` or ``r1`` … ``r10`` (counts or probabilities),
    or ``mean`` and optionally ``std``. Optional: ``votes``, ``group`` (blank: a group of its own),
    ``tags`` (separated by ``;`` in CSV).
    """
    frame = _own_frame(path)
    if "image_id" not in frame:
        raise LabelError(f"{path.name}: needs a column image_id{_found(frame)}")
    if frame.empty:
        raise LabelError(f"{path.name}: needs at least one row")
    count = len(frame)
    numbers = range(1, count + 1) if path.suffix == ".parquet" else csv_rows(path, count)
    unnamed = frame["image_id"].isna() | (frame["image_id"].astype(str).str.strip() == "")
    if unnamed.any():
        row = numbers[int(np.argmax(unnamed.to_numpy()))]
        raise LabelError(f"{path.name}, row {row}: no image_id")
    counts = [f"r{rating}" for rating in range(1, 11)]
    columns = next((c for c in (PROBABILITIES, counts) if set(c) <= set(frame.columns)), None)
    votes = None
    if "votes" in frame:
        votes = np.full(count, np.nan)
        for index, value in enumerate(frame["votes"]):
            try:
                votes[index] = np.nan if pd.isna(value) else real(value)
            except (TypeError, ValueError) as error:
                raise LabelError(f"{path.name}, row {numbers[index]}: votes: {error}") from error
    if columns is not None:
        values = frame[columns].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
        probabilities = distributions(values, path.name, numbers)
        votes = _votes(values) if votes is None else votes
    elif "mean" in frame:
        stds = frame["std"] if "std" in frame else [None] * len(frame)
        rows = []
        for row, mean, std in zip(numbers, frame["mean"], stds, strict=True):
            try:
                known = None if std is None or pd.isna(std) else real(std)
                rows.append(maximum_entropy(real(mean), known))
            except (TypeError, ValueError) as error:
                raise LabelError(f"{path.name}, row {row}: {error}") from error
        probabilities = np.array(rows)
    else:
        raise LabelError(f"{path.name}: needs p1..p10, r1..r10, or mean (and std){_found(frame)}")
    if votes is None:
        votes = np.full(len(frame), np.nan)
    votes = np.where(votes > 0, votes, np.nan)
    tags = None
    if "tags" in frame:
        tags = [labels_of(value) for value in frame["tags"]]
    groups = None
    if "group" in frame:
        groups = [
            str(image_id) if pd.isna(group) or not str(group).strip() else str(group)
            for image_id, group in zip(frame["image_id"], frame["group"], strict=True)
        ]
    ids = frame["image_id"].tolist()
    return table(ids, probabilities, votes, groups, tags, path.name, numbers)


def _found(frame: pd.DataFrame) -> str:
    """What a table has in the place of the columns it needs."""
    names = [str(name) for name in frame.columns]
    if len(names) == 1 and any(separator in names[0] for separator in ";\t|"):
        return f", separated by commas; its header is {names[0][:80]!r}"
    shown = ", ".join(repr(name) for name in names[:16])
    return f"; it has {shown}{' …' if len(names) > 16 else ''}"


def _own_frame(path: Path) -> pd.DataFrame:
    kind = "Parquet" if path.suffix == ".parquet" else "CSV"
    try:
        if kind == "Parquet":
            return pd.read_parquet(path)
        # Text as it stands: 0139 is not 139, and NA may be the name of a photo or of a group.
        frame = pd.read_csv(path, converters={"image_id": str, "group": str, "tags": str})
    except Exception as error:  # Arrow, pandas and the readers of .gz, .zip … refuse in many ways
        if isinstance(error, OSError) and error.errno is not None:
            raise  # not there, or not to be opened
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LabelError(f"{path.name} cannot be read as {kind}: {reason}") from error
    if not isinstance(frame.index, pd.RangeIndex):
        # pandas takes the first fields for row names then, and every value for its neighbour's.
        raise LabelError(
            f"{path.name}: its rows have more fields than its header: name every column, leave out "
            "commas at the end of a row, and put names with commas in quotes"
        )
    return frame


def labels_of(value: object) -> list[str]:
    """The tags or styles of one row: a list in Parquet, text in CSV, none where it has no value."""
    if isinstance(value, (list, np.ndarray)):
        return [str(tag) for tag in value]
    if pd.isna(value):  # type: ignore[call-overload]
        return []
    return [tag for part in str(value).split(";") if (tag := part.strip())]


def _votes(values: np.ndarray) -> np.ndarray:
    """Row sums where the values are counts; NaN where they are probabilities."""
    sums = values.sum(axis=1)
    return np.where(np.abs(sums - 1) < SUM_TOLERANCE, np.nan, sums)
