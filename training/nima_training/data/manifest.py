"""``nima prepare``: a table of ratings and a folder of photos to one checked, split manifest.

What is broken or missing is dropped and reported with its reason, never fatal. The checks of the
files (:mod:`nima_training.data.checks`) are kept beside the manifest, so that a killed run goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nima_training.data.checks import PhotoNames, check_files
from nima_training.files import write_json, write_parquet
from nima_training.split import (
    first_names,
    group_near_duplicates,
    join_groups,
    split_by_group,
)

DEFAULT_FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}
OFFICIAL_FRACTIONS = {"val": 0.05, "train": 0.95}
"""Of what an official test split and its look-alikes leave."""
FEW = 10
"""A part of fewer groups of photos than these is warned of."""


@dataclass
class Report:
    """What became of every labelled image: counts by reason, and the names behind them."""

    labelled: int = 0
    kept: int = 0
    dropped: dict[str, list[str]] = field(default_factory=dict)
    split: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def drop(self, reason: str, image_id: str) -> None:
        """Note one image as dropped."""
        self.dropped.setdefault(reason, []).append(image_id)

    def summary(self) -> str:
        """One line a reader can act on."""
        parts = [f"{len(names)} {reason}" for reason, names in sorted(self.dropped.items())]
        dropped = ", ".join(parts) or "none"
        split = ", ".join(f"{count} {name}" for name, count in self.split.items())
        return f"{self.labelled} labelled, {self.kept} kept ({split}); dropped: {dropped}"


def build_manifest(
    ratings: pd.DataFrame,
    photos: Path,
    out: Path,
    *,
    test_ids: set[str] | None = None,
    styles: dict[str, list[str]] | None = None,
    fractions: dict[str, float] | None = None,
    min_side: int = 32,
    workers: int = 1,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Check and split the photos of ``ratings``; write ``out`` (Parquet) and its ``.report.json``.

    Args:
        ratings: a table of :mod:`nima_training.data.sources`.
        photos: folder that is searched recursively; an image id is a file name with or without
            its suffix, or a path from this folder (:class:`nima_training.data.checks.PhotoNames`).
        out: the Parquet manifest.
        test_ids: an official test split, of image ids or file names without suffix, kept as it is.
            Other photos of a group with one of it, or that show the same picture, are dropped; of
            the rest 5 % become validation. None: groups (given, widened by near-duplicates) are
            dealt out by ``fractions``.
        styles: image id, or file name without suffix -> style names.
        fractions: shares of train, val and test; default 80/10/10.
        min_side: smaller photos are dropped.
        workers: processes.
        seed: of the split.
        progress: as in :func:`nima_training.data.checks.check_files`.

    Raises:
        ValueError: no labelled photo is usable, or none is in ``test_ids``; ``out`` is a folder.
    """
    if out.is_dir():
        raise ValueError(f"{out} is a folder: name a file in it, such as {out / 'ava.parquet'}")
    report = Report(labelled=len(ratings))
    names = PhotoNames(photos)
    rows = []
    for row in ratings.to_dict("records"):
        paths = names.find(str(row["image_id"]))
        if len(paths) != 1:
            reason = "named by several files" if paths else "missing"
            report.drop(reason, str(row["image_id"]))
        elif not _is_text(f"{row['image_id']}{paths[0].relative_to(photos)}"):
            report.drop("below a folder whose name is not UTF-8", str(row["image_id"]))
        else:
            rows.append((row, paths[0]))
    out.parent.mkdir(parents=True, exist_ok=True)
    checks = check_files(
        [path for _, path in rows], workers, out.with_suffix(".checks.jsonl"), progress
    )
    kept: list[dict[str, Any]] = []
    thumbnails = []
    for (row, path), check in zip(rows, checks, strict=True):
        if check.error is not None:
            report.drop(check.error.split(":")[0], str(row["image_id"]))
            continue
        if min(check.width, check.height) < min_side:
            report.drop("too small", str(row["image_id"]))
            continue
        thumbnails.append(np.frombuffer(bytes.fromhex(check.thumbnail), np.uint8))
        found = {
            **row,
            "path": path.relative_to(photos).as_posix(),
            "sha256": check.sha256, "width": check.width, "height": check.height,
            "dhash": check.dhash,
        }  # fmt: skip
        own = (styles[name] for name in _names(found) if styles and name in styles)
        kept.append({**found, "styles": next(own, [])})
    if not kept:
        first = next((name for names in report.dropped.values() for name in names), "")
        raise ValueError(
            f"no labelled photo is usable, e.g. not {first!r}; {report.summary()}; "
            f"searched {photos}"
        )
    labels = [str(row["group"]) for row in kept]
    hashes = [int(row["dhash"], 16) for row in kept]
    shares = fractions or DEFAULT_FRACTIONS
    parts = list(shares if test_ids is None else DEFAULT_FRACTIONS)
    # Files of equal bytes, too, before all but one go: they tie their groups together.
    alike = group_near_duplicates(hashes, thumbnails=np.stack(thumbnails))
    groups = join_groups(alike, labels)
    keep = _without_duplicates(kept, test_ids or set(), report)
    if test_ids is None:
        names_of_groups = first_names(labels, groups)
        split = split_by_group(names_of_groups, [groups[i] for i in keep], shares, seed)
    else:
        keep, split = _official_split(kept, keep, groups, test_ids, seed, report)
    frame = pd.DataFrame([kept[i] for i in keep])
    frame["split"] = split
    report.kept = len(frame)
    report.split = {part: split.count(part) for part in parts}
    report.warnings = _warnings(split, [groups[i] for i in keep], report.split)
    write_parquet(out, frame)
    write_json(out.with_suffix(".report.json"), asdict(report))
    return report


def _is_text(name: str) -> bool:
    """Whether Parquet can hold it: bytes of a file's name that are not UTF-8 it cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _names(row: dict[str, Any]) -> tuple[str, str]:
    """What a list may call a photo: its image id, and its file's name without the suffix."""
    return str(row["image_id"]), Path(row["path"]).stem


def _without_duplicates(
    rows: list[dict[str, Any]], test_ids: set[str], report: Report
) -> list[int]:
    """Drop files of equal bytes; the copy in the official test split stays, else the first id."""
    order = sorted(
        range(len(rows)),
        key=lambda i: (test_ids.isdisjoint(_names(rows[i])), str(rows[i]["image_id"])),
    )
    seen: set[str] = set()
    keep = []
    for index in order:
        if rows[index]["sha256"] in seen:
            report.drop("duplicate", str(rows[index]["image_id"]))
        else:
            seen.add(rows[index]["sha256"])
            keep.append(index)
    return sorted(keep)


def _official_split(
    rows: list[dict[str, Any]],
    keep: list[int],
    groups: list[int],
    test_ids: set[str],
    seed: int,
    report: Report,
) -> tuple[list[int], list[str]]:
    """The indexes that stay of ``keep``, and their parts.

    The test photos are those of the list, so that figures compare with those of others: what is
    related to one of them is dropped, and the rest dealt to train and val.
    """
    test = {i for i in keep if not test_ids.isdisjoint(_names(rows[i]))}
    if not test:
        raise ValueError(
            f"none of the {len(keep)} usable photos is in the official test split, which "
            f"names e.g. {next(iter(sorted(test_ids)), 'none')!r}: name image ids or files as "
            "it does, or leave it out (--ava-lists)"
        )
    tested = {groups[i] for i in test}
    rest = []
    for index in keep:
        if groups[index] not in tested:
            rest.append(index)
        elif index not in test:
            report.drop("related to a test photo", str(rows[index]["image_id"]))
    names = first_names([str(row["group"]) for row in rows], groups)
    dealt = split_by_group(names, [groups[i] for i in rest], OFFICIAL_FRACTIONS, seed)
    parts = dict.fromkeys(test, "test") | dict(zip(rest, dealt, strict=True))
    return sorted(parts), [parts[index] for index in sorted(parts)]


def _warnings(split: list[str], groups: list[int], counts: dict[str, int]) -> list[str]:
    """What is amiss with the sizes of the parts."""
    found = []
    for part, count in counts.items():
        own = len({group for group, name in zip(groups, split, strict=True) if name == part})
        if own == 0:
            found.append(f"{part} has no photo: more are needed")
        elif own < FEW:
            found.append(f"{part}: {count} photos of {own} groups, too few to rely on")
    return found


def data_sha256(frame: pd.DataFrame) -> str:
    """Hash of what a training run depends on: photos, ratings and split, in the order of the rows.

    The order counts, since the batches of a run are drawn by row numbers. In a manifest made by
    other means, without hashes of the photos, their paths stand for them.
    """
    photo = "sha256" if "sha256" in frame else "path"
    columns = ["image_id", photo, "split", *[f"p{rating}" for rating in range(1, 11)]]
    text = frame[columns].to_csv(index=False, float_format="%.9g")
    return hashlib.sha256(text.encode()).hexdigest()
