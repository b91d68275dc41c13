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

from nima_training.data.maxent import maximum_entropy

PROBABILITIES = [f"p{rating}" for rating in range(1, 11)]
AVA_COLUMNS = 15
# Probabilities written with six digits sum to 1 only so far.
SUM_TOLERANCE = 2e-3


class LabelError(ValueError):
    """A label file is malformed; the message names the file and the row."""


def distributions(values: np.ndarray, source: str, first_row: int = 1) -> np.ndarray:
    """Check counts or probabilities ``[N, 10]`` and normalise each row to sum 1.

    Args:
        values: non-negative counts, or probabilities.
        source: named in errors.
        first_row: number of the first row in the file, for errors.

    Raises:
        LabelError: NaN, infinite or negative value, or a row without votes.
    """
    values = np.asarray(values, dtype=np.float64)
    for bad, reason in (
        (np.isnan(values).any(axis=1), "a rating is NaN or not a number"),
        (np.isinf(values).any(axis=1), "a rating is infinite"),
        ((values < 0).any(axis=1), "a rating is negative"),
        (values.sum(axis=1) <= 0, "no votes at all"),
    ):
        if bad.any():
            raise LabelError(f"{source}, row {first_row + int(np.argmax(bad))}: {reason}")
    return np.asarray(values / values.sum(axis=1, keepdims=True))


def table(
    image_ids: Sequence[str],
    probabilities: np.ndarray,
    votes: Sequence[float] | np.ndarray,
    groups: Sequence[str] | None = None,
    tags: Sequence[list[str]] | None = None,
    source: str = "labels",
) -> pd.DataFrame:
    """Assemble the common table; duplicate ids are refused."""
    frame = pd.DataFrame(probabilities, columns=PROBABILITIES)
    frame.insert(0, "image_id", [str(image_id) for image_id in image_ids])
    frame["votes"] = np.asarray(votes, dtype=np.float64)
    frame["group"] = list(groups) if groups is not None else frame["image_id"]
    frame["tags"] = list(tags) if tags is not None else [[] for _ in range(len(frame))]
    repeated = frame["image_id"].duplicated()
    if repeated.any():
        row = int(np.argmax(repeated.to_numpy()))
        raise LabelError(f"{source}, row {row + 1}: image {frame['image_id'][row]} appears twice")
    return frame


def read_ava(path: Path, tag_names: dict[int, str] | None = None) -> pd.DataFrame:
    """AVA.txt: index, image id, ten counts, two tag ids (0 = none), challenge id.

    The challenge becomes a tag ``challenge:<id>``.
    """
    rows: list[list[float]] = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        fields = line.split()
        if len(fields) != AVA_COLUMNS:
            raise LabelError(
                f"{path.name}, row {number}: {len(fields)} columns, AVA.txt has {AVA_COLUMNS}"
            )
        try:
            rows.append([float(field) for field in fields])
        except ValueError as error:
            raise LabelError(f"{path.name}, row {number}: {error}") from error
    if not rows:
        raise LabelError(f"{path.name} holds no rows")
    values = np.array(rows)
    counts = values[:, 2:12]
    names = tag_names or {}
    tags = [
        [names.get(int(tag), f"tag:{int(tag)}") for tag in row[12:14] if tag > 0]
        + [f"challenge:{int(row[14])}"]
        for row in values
    ]
    probabilities = distributions(counts, path.name)
    ids = [str(int(image_id)) for image_id in values[:, 1]]
    return table(ids, probabilities, counts.sum(axis=1), tags=tags, source=path.name)


def read_label_json(path: Path) -> pd.DataFrame:
    """The JSON list of idealo: of ``{"image_id": …, "label": [ten counts or probabilities]}``."""
    try:
        samples = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise LabelError(f"{path.name} is not valid JSON: {error}") from error
    if not isinstance(samples, list) or not samples:
        raise LabelError(f"{path.name}: expected a non-empty list of samples")
    labels = []
    for number, sample in enumerate(samples, start=1):
        label = sample.get("label") if isinstance(sample, dict) else None
        if not isinstance(label, list) or len(label) != 10 or "image_id" not in sample:
            raise LabelError(
                f'{path.name}, row {number}: needs "image_id" and a "label" of ten numbers'
            )
        labels.append([np.nan if value is None else value for value in label])
    try:
        values = np.array(labels, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise LabelError(f"{path.name}: a label holds something that is not a number") from error
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
    lines = [line.split() for line in names.read_text().splitlines() if line.strip()]
    ids, rows, groups, tags = [], [], [], []
    for number, fields in enumerate(lines, start=1):
        try:
            mos, name = float(fields[0]), fields[1]
            rows.append(maximum_entropy(mos + 1))
        except (ValueError, IndexError) as error:
            raise LabelError(f"mos_with_names.txt, row {number}: {error}") from error
        stem = Path(name).stem.lower()
        ids.append(stem)
        groups.append(stem.split("_")[0])
        tags.append(["distortion:" + stem.split("_")[1]] if stem.count("_") == 2 else [])
    unknown = np.full(len(ids), np.nan)
    return table(ids, np.array(rows), unknown, groups, tags, names.name)


def read_own(path: Path) -> pd.DataFrame:
    """A CSV (also ``.csv.gz``) or Parquet of one's own.

    Needs ``image_id`` and either ``p1`` … ``p10`` or ``r1`` … ``r10`` (counts or probabilities),
    or ``mean`` and optionally ``std``. Optional: ``votes``, ``group`` (blank: a group of its own),
    ``tags`` (separated by ``;`` in CSV).
    """
    if path.suffix == ".parquet":
        frame = pd.read_parquet(path)
    else:  # text even where all are digits: 0139 is not 139
        frame = pd.read_csv(path, dtype={"image_id": str, "group": str})
    first = 1 if path.suffix == ".parquet" else 2  # a CSV has a header row
    if "image_id" not in frame or frame.empty:
        raise LabelError(f"{path.name}: needs a column image_id and at least one row")
    if (unnamed := frame["image_id"].isna()).any():
        row = first + int(np.argmax(unnamed.to_numpy()))
        raise LabelError(f"{path.name}, row {row}: no image_id")
    counts = [f"r{rating}" for rating in range(1, 11)]
    columns = next((c for c in (PROBABILITIES, counts) if set(c) <= set(frame.columns)), None)
    votes = frame["votes"].astype(float).to_numpy() if "votes" in frame else None
    if columns is not None:
        values = frame[columns].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
        probabilities = distributions(values, path.name, first)
        votes = _votes(values) if votes is None else votes
    elif "mean" in frame:
        stds = frame["std"] if "std" in frame else [None] * len(frame)
        rows = []
        for row, (mean, std) in enumerate(zip(frame["mean"], stds, strict=True), start=first):
            try:
                known = None if std is None or pd.isna(std) else float(std)
                rows.append(maximum_entropy(float(mean), known))
            except ValueError as error:
                raise LabelError(f"{path.name}, row {row}: {error}") from error
        probabilities = np.array(rows)
    else:
        raise LabelError(f"{path.name}: needs p1..p10, r1..r10, or mean (and std)")
    if votes is None:
        votes = np.full(len(frame), np.nan)
    votes = np.where(votes > 0, votes, np.nan)
    tags = None
    if "tags" in frame:
        tags = [
            [tag for tag in value.split(";") if tag] if isinstance(value, str) else list(value)
            for value in frame["tags"].fillna("")
        ]
    groups = None
    if "group" in frame:
        groups = [
            str(image_id) if pd.isna(group) or not str(group).strip() else str(group)
            for image_id, group in zip(frame["image_id"], frame["group"], strict=True)
        ]
    return table(frame["image_id"].tolist(), probabilities, votes, groups, tags, path.name)


def _votes(values: np.ndarray) -> np.ndarray:
    """Row sums where the values are counts; NaN where they are probabilities."""
    sums = values.sum(axis=1)
    return np.where(np.abs(sums - 1) < SUM_TOLERANCE, np.nan, sums)
