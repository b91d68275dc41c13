"""What may be done with the chosen photos: copy, link or move them, or rate them in sidecars.

Only on request, and never over an existing file.
"""

from __future__ import annotations

import enum
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from nima_client._names import named_path
from nima_client.library.rows import Row
from nima_client.library.xmp import sidecar, stars, write_rating


class Action(str, enum.Enum):
    """How a chosen photo gets into another folder."""

    COPY = "copy"
    LINK = "link"
    MOVE = "move"


def place(rows: Iterable[Row], folder: Path, action: Action) -> list[Path]:
    """Copy, link (symbolically) or move the files of these rows into a folder.

    Names are prefixed with their rank (``001_6.72_photo.jpg``), so that the folder sorts as the
    rows do. A sidecar goes along. Members of archives have no file and are passed over.

    Returns:
        The new paths.

    Raises:
        FileExistsError: a target exists; nothing is overwritten, what was done before stays.
        FileNotFoundError: a photo is not where its row says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    placed = []
    for rank, row in enumerate(rows, 1):
        source = named_path(row.file)
        if _inside_archive(source):
            continue
        target = folder / f"{rank:03d}_{row.mean:.2f}_{source.name}"
        _place_one(source, target, action)
        placed.append(target)
        if sidecar(source).exists():
            _place_one(sidecar(source), sidecar(target), action)
    return placed


def rate(rows: Iterable[Row]) -> int:
    """Write a star rating for each row into the sidecar of its photo; how many were written."""
    written = 0
    for row in rows:
        path = named_path(row.file)
        if not _inside_archive(path):
            write_rating(path, stars(row))
            written += 1
    return written


def _inside_archive(path: Path) -> bool:
    return not path.exists() and any(named_path(str(p)).is_file() for p in path.parents)


def _place_one(source: Path, target: Path, action: Action) -> None:
    if os.path.lexists(target):
        raise FileExistsError(f"{target} exists already: nothing is overwritten")
    if action is Action.LINK:
        if not source.exists():
            raise FileNotFoundError(f"{source}: no such file")
        target.symlink_to(source.resolve())
    elif action is Action.COPY:
        # Whole or not at all, even if the disk is full half-way.
        partial = target.with_name(f".{target.name}.partial")
        try:
            shutil.copy2(source, partial)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    else:
        shutil.move(source, target)
