"""What may be done with the chosen photos: copy, link or move them, or rate them in sidecars.

Only on request, and never over an existing file.
"""

from __future__ import annotations

import enum
import errno
import filecmp
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nima_client._files import flush, flush_folder
from nima_client._names import archives_above, named_path
from nima_client.library.rows import Row
from nima_client.library.xmp import sidecar, stars, write_rating

Report = Callable[[Row, Exception], None]
"""Told of a row with which something could not be done, and why."""

_NAME_BYTES = 255
_LINKS = 40  # one behind the other, as many as Linux follows


class Action(str, enum.Enum):
    """How a chosen photo gets into another folder."""

    COPY = "copy"
    LINK = "link"
    MOVE = "move"


def raise_it(row: Row, error: Exception) -> None:
    """The :data:`Report` that ends at the first error."""
    raise error


def place(
    rows: Sequence[Row],
    folder: Path,
    action: Action,
    *,
    named: Mapping[str, Path] | None = None,
    report: Report = raise_it,
) -> list[Path]:
    """Copy, link (symbolically) or move the files of these rows into a folder.

    Names are prefixed with their rank (``001_6.72_photo.jpg``), so that the folder sorts as the
    rows do; too long ones are cut before their ending. A sidecar goes along. A link that is moved
    leads where it led, and to where the photo is now that is moved with it. Members of archives
    have no file and are passed over. What an earlier call has placed already is left as it is.

    Args:
        rows: the photos, in order.
        folder: where to; made if it is missing.
        action: what to do.
        named: files by the names of the rows, where known; else the name is the path.
        report: told of photos that could not be placed; by default the first such error is raised.

    Returns:
        The new paths.

    Raises:
        FileExistsError: another file is in a photo's place; nothing is overwritten, what was done
            before stays.
        FileNotFoundError: a photo is not where its row says.
        OSError: the folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    width = max(3, len(str(len(rows))))
    todo = []
    for rank, row in enumerate(rows, 1):
        source = _file_of(row, named)
        if _inside_archive(source):
            continue
        target = folder / _cut(f"{rank:0{width}d}_{row.mean:.2f}_{source.name}")
        todo.append((source, target, row))
    if action is Action.MOVE:
        # Links last, when the photos have moved that they lead to.
        todo.sort(key=lambda one: one[0].is_symlink())
    moving = {_real_name(source): target for source, target, _ in reversed(todo)}
    placed = []
    for source, target, row in todo:
        try:
            beside = sidecar(source)
            _place_one(source, target, action, moving)
            placed.append(target)
            if beside.exists():
                _place_one(beside, sidecar(target), action, moving)
        except (OSError, ValueError) as error:
            report(row, error)
    return sorted(placed)


def rate(
    rows: Sequence[Row],
    *,
    named: Mapping[str, Path] | None = None,
    report: Report = raise_it,
) -> int:
    """Write a star rating for each row into the sidecar of its photo; how many were written.

    Args:
        rows: the photos.
        named: files by the names of the rows, where known; else the name is the path.
        report: told of photos without a new rating; by default the first such error is raised.
    """
    written, folders = 0, set()
    try:
        for row in rows:
            path = _file_of(row, named)
            if _inside_archive(path):
                continue
            try:
                if not os.path.lexists(path):
                    raise FileNotFoundError(f"{path}: no such file")
                folders.add(write_rating(path, stars(row)).parent)
                written += 1
            except (OSError, ValueError) as error:
                report(row, error)
    finally:
        for folder in folders:
            flush_folder(folder)
    return written


def without_file(rows: Sequence[Row], named: Mapping[str, Path] | None = None) -> int:
    """How many of these rows :func:`place` and :func:`rate` pass over: members of archives."""
    return sum(_inside_archive(_file_of(row, named)) for row in rows)


def _file_of(row: Row, named: Mapping[str, Path] | None) -> Path:
    return (named or {}).get(row.file) or named_path(row.file)


def _inside_archive(path: Path) -> bool:
    return not os.path.exists(path) and any(archives_above(path))


def _cut(name: str) -> str:
    """A name that leaves room for a sidecar's ending."""
    stem, suffix = os.path.splitext(name)
    while stem and len(os.fsencode(stem + suffix + ".xmp")) > _NAME_BYTES:
        stem = stem[:-1]
    return stem + suffix


def _real_name(path: Path) -> Path:
    """A file by the one name of its folder; a link as the link."""
    return Path(os.path.realpath(path.parent), path.name)


def _moved_to(link: Path, moving: Mapping[Path, Path]) -> Path | None:
    """Where the photo has been moved to that a link leads to; None if it has not."""
    for _ in range(_LINKS):
        if not link.is_symlink():
            break
        link = _real_name(link.parent / os.readlink(link))
        target = moving.get(link)
        if target is not None and _is_placed(link, target, Action.MOVE) and target.exists():
            return target
    return None


def _place_one(source: Path, target: Path, action: Action, moving: Mapping[Path, Path]) -> None:
    if os.path.lexists(target):
        if action is Action.MOVE and _is_half_moved(source, target, moving):
            _delete(source, target)
        elif not _is_placed(source, target, action):
            raise FileExistsError(f"{target} exists already: nothing is overwritten")
    elif action is Action.MOVE and _moved_to(source, moving) is not None:
        target.symlink_to(_link_of(source, moving))
        source.unlink()
    elif not source.exists():
        raise FileNotFoundError(f"{source}: no such file")
    elif action is Action.LINK:
        target.symlink_to(source.resolve())
    elif action is Action.COPY:
        _copy(source, target)
    elif source.is_symlink():
        target.symlink_to(_link_of(source, moving))
        source.unlink()
    else:
        try:
            os.rename(source, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _copy(source, target)  # onto another disk
            _delete(source, target)


def _link_of(source: Path, moving: Mapping[Path, Path]) -> Path:
    """What a link says once it is moved."""
    along = _moved_to(source, moving)
    if along is not None:
        return Path(along.name)  # beside it, wherever both are taken
    # Where it will lie, a relative link leads elsewhere.
    return Path(os.path.realpath(source.parent), os.readlink(source))


def _is_half_moved(source: Path, target: Path, moving: Mapping[Path, Path]) -> bool:
    """Whether only the source is still to be deleted: a kill came before that."""
    if source.is_symlink():
        return target.is_symlink() and Path(os.readlink(target)) == _link_of(source, moving)
    # Never the only name of the bytes.
    return (
        source.is_file()
        and not target.is_symlink()
        and not (target.exists() and os.path.samefile(source, target))
        and _is_placed(source, target, Action.COPY)
    )


def _copy(source: Path, target: Path) -> None:
    """Copy whole or not at all, even if the disk is full half-way."""
    partial = target.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        shutil.copy2(source, partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _delete(source: Path, target: Path) -> None:
    """Delete what was copied, once the copy would outlive a power cut."""
    # Windows flushes no file that is open for reading.
    if os.name != "nt" and not target.is_symlink():
        flush(target)
        flush_folder(target.parent)
    source.unlink()


def _is_placed(source: Path, target: Path, action: Action) -> bool:
    """Whether what lies there is what an earlier call put there."""
    if action is Action.MOVE:
        return not os.path.lexists(source)
    if action is Action.LINK:
        return target.is_symlink() and source.exists() and target.resolve() == source.resolve()
    return source.is_file() and target.is_file() and filecmp.cmp(source, target, shallow=False)
