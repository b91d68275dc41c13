"""``nima prepare``: a table of ratings and a folder of photos to one checked, split manifest.

Every file is read once: hashed, its header inspected, decoded whole, and reduced to a difference
hash that finds near-duplicates. What is broken is dropped and reported with its reason, never
fatal. The checks are kept in a JSON-lines file beside the manifest, so that a killed run goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd

from nima_client.preprocess import (
    DEFAULT_LIMITS,
    ImageRejected,
    PreprocessSpec,
    decode,
    inspect_header,
)
from nima_training.files import write_json, write_parquet
from nima_training.split import (
    difference_hash,
    group_near_duplicates,
    join_groups,
    split_by_group,
    unit_hash,
)

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
DEFAULT_FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}
AVA_VALIDATION = 0.05


@dataclass(frozen=True)
class FileCheck:
    """What one reading of a file found. ``error`` is None for a usable photo."""

    path: str
    size: int
    mtime_ns: int
    sha256: str = ""
    width: int = 0
    height: int = 0
    dhash: str = ""
    error: str | None = None


@dataclass
class Report:
    """What became of every labelled image: counts by reason, and the names behind them."""

    labelled: int = 0
    kept: int = 0
    dropped: dict[str, list[str]] = field(default_factory=dict)
    split: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, image_id: str) -> None:
        """Note one image as dropped."""
        self.dropped.setdefault(reason, []).append(image_id)

    def summary(self) -> str:
        """One line a reader can act on."""
        parts = [f"{len(names)} {reason}" for reason, names in sorted(self.dropped.items())]
        dropped = ", ".join(parts) or "none"
        split = ", ".join(f"{count} {name}" for name, count in self.split.items())
        return f"{self.labelled} labelled, {self.kept} kept ({split}); dropped: {dropped}"


def check_file(path: Path) -> FileCheck:
    """Read, decode and hash one file; never raises for a bad one."""
    try:
        stat = path.stat()
        data = path.read_bytes()
    except OSError as error:
        return FileCheck(str(path), 0, 0, error=f"unreadable: {error.strerror}")
    common = (str(path), stat.st_size, stat.st_mtime_ns, hashlib.sha256(data).hexdigest())
    try:
        header = inspect_header(data, DEFAULT_LIMITS)
        image = decode(data, PreprocessSpec(), DEFAULT_LIMITS)
    except ImageRejected as error:
        return FileCheck(*common, error=f"{error.code.value.lower()}: {error.detail}")
    digest = f"{difference_hash(image):016x}"
    return FileCheck(*common, header.width, header.height, digest)


def find_files(photos: Path) -> dict[str, list[Path]]:
    """What a label file may call a photo, in lower case -> the paths that it fits.

    The names of each photo below ``photos``: the path from there, the file name, and the file name
    without its suffix.
    """
    if not photos.is_dir():
        raise ValueError(f"{photos} is not a folder of photos")
    found: dict[str, list[Path]] = {}
    for path in sorted(photos.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            for name in {path.relative_to(photos).as_posix(), path.name, path.stem}:
                found.setdefault(name.lower(), []).append(path)
    return found


def check_files(
    paths: list[Path],
    workers: int,
    cache: Path | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[FileCheck]:
    """:func:`check_file` for each path in order, reusing checks of unchanged files in ``cache``.

    ``progress`` is called with the number of files read so far and of those to read.
    """
    known: dict[str, FileCheck] = {}
    if cache is not None and cache.exists():
        for line in cache.read_text().splitlines():
            try:
                check = FileCheck(**json.loads(line))
            except (json.JSONDecodeError, TypeError):
                continue  # the line that a kill cut short
            known[check.path] = check

    def fresh(path: Path) -> bool:
        old = known.get(str(path))
        if old is None:
            return True
        try:
            stat = path.stat()
        except OSError:  # a link that leads nowhere: reading it tells the reason
            return True
        return (old.size, old.mtime_ns) != (stat.st_size, stat.st_mtime_ns)

    todo = [path for path in paths if fresh(path)]
    if workers > 1 and len(todo) > 64:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
            new = executor.map(check_file, todo, chunksize=32)
            known |= _remember(new, cache, lambda done: progress(done, len(todo)))
    else:
        new = (check_file(path) for path in todo)
        known |= _remember(new, cache, lambda done: progress(done, len(todo)))
    yield from (known[str(path)] for path in paths)


def _remember(
    checks: Iterator[FileCheck], cache: Path | None, progress: Callable[[int], None]
) -> dict[str, FileCheck]:
    result = {}
    file = cache.open("a", encoding="utf-8") if cache is not None else None
    try:
        for done, check in enumerate(checks, start=1):
            result[check.path] = check
            progress(done)
            if file is not None:
                file.write(json.dumps(asdict(check)) + "\n")
    finally:
        if file is not None:
            file.close()
    return result


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
            its suffix, or a path from this folder.
        out: the Parquet manifest.
        test_ids: an official test split, of image ids or file names without suffix; of the rest 5 %
            become validation. None: groups (given, widened by near-duplicates) are dealt out by
            ``fractions``.
        styles: image id, or file name without suffix -> style names.
        fractions: shares of train, val and test; default 80/10/10.
        min_side: smaller photos are dropped.
        workers: processes.
        seed: of the split.
        progress: as in :func:`check_files`.

    Raises:
        ValueError: no labelled photo is usable, or none is in ``test_ids``.
    """
    report = Report(labelled=len(ratings))
    files = find_files(photos)
    rows = []
    for row in ratings.to_dict("records"):
        paths = files.get(str(row["image_id"]).lower(), [])
        if len(paths) == 1:
            rows.append((row, paths[0]))
        else:
            reason = "named by several files" if paths else "missing"
            report.drop(reason, str(row["image_id"]))
    out.parent.mkdir(parents=True, exist_ok=True)
    checks = check_files(
        [path for _, path in rows], workers, out.with_suffix(".checks.jsonl"), progress
    )
    kept: list[dict[str, Any]] = []
    for (row, path), check in zip(rows, checks, strict=True):
        if check.error is not None:
            report.drop(check.error.split(":")[0], str(row["image_id"]))
            continue
        if min(check.width, check.height) < min_side:
            report.drop("too small", str(row["image_id"]))
            continue
        found = {
            **row,
            "path": path.relative_to(photos).as_posix(),
            "sha256": check.sha256, "width": check.width, "height": check.height,
            "dhash": check.dhash,
        }  # fmt: skip
        own = (styles[name] for name in _names(found) if styles and name in styles)
        kept.append({**found, "styles": next(own, [])})
    kept = _without_duplicates(kept, test_ids, report)
    if not kept:
        raise ValueError(f"no labelled photo is usable; {report.summary()}; searched {photos}")
    frame = pd.DataFrame(kept)
    if test_ids is not None:
        frame["split"] = [
            "test" if not test_ids.isdisjoint(_names(row))
            else "val" if unit_hash(row["image_id"], seed) < AVA_VALIDATION else "train"
            for row in kept
        ]  # fmt: skip
        if "test" not in set(frame["split"]):
            raise ValueError(
                f"none of the {len(frame)} usable photos is in the official test split, which "
                f"names e.g. {next(iter(sorted(test_ids)), 'none')!r}: name image ids or files as "
                "it does, or leave it out (--ava-lists)"
            )
    else:
        frame["split"] = _grouped_split(frame, fractions or DEFAULT_FRACTIONS, seed)
    report.kept = len(frame)
    report.split = {str(k): int(v) for k, v in Counter(frame["split"]).items()}
    write_parquet(out, frame)
    write_json(out.with_suffix(".report.json"), asdict(report))
    return report


def _names(row: dict[str, Any]) -> tuple[str, str]:
    """What a list may call a photo: its image id, and its file's name without the suffix."""
    return str(row["image_id"]), Path(row["path"]).stem


def _without_duplicates(
    rows: list[dict[str, Any]], test_ids: set[str] | None, report: Report
) -> list[dict[str, Any]]:
    """Drop files of equal bytes; the copy in the official test split stays, else the first."""
    in_test = test_ids or set()
    order = sorted(range(len(rows)), key=lambda i: (in_test.isdisjoint(_names(rows[i])), i))
    seen: set[str] = set()
    keep = set()
    for index in order:
        if rows[index]["sha256"] in seen:
            report.drop("duplicate", rows[index]["image_id"])
        else:
            seen.add(rows[index]["sha256"])
            keep.add(index)
    return [row for index, row in enumerate(rows) if index in keep]


def _grouped_split(frame: pd.DataFrame, fractions: dict[str, float], seed: int) -> list[str]:
    """Split by ``group``, groups that share a near-duplicate joined."""
    alike = group_near_duplicates([int(value, 16) for value in frame["dhash"]])
    groups = join_groups(alike, frame["group"].astype(str).tolist())
    return split_by_group(frame["group"].astype(str).tolist(), groups, fractions, seed)


def data_sha256(frame: pd.DataFrame) -> str:
    """Hash of what a training run depends on: photos, ratings and split, in a fixed order."""
    columns = ["image_id", "sha256", "split", *[f"p{rating}" for rating in range(1, 11)]]
    text = frame.sort_values("image_id")[columns].to_csv(index=False, float_format="%.9g")
    return hashlib.sha256(text.encode()).hexdigest()
