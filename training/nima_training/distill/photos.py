"""The photos of a run and their three-way split."""

from __future__ import annotations

from pathlib import Path

from nima_client.library.formats import IMAGE_SUFFIXES, is_photo
from nima_training.distill.config import SPLIT_FRACTIONS
from nima_training.distill.views import open_photo
from nima_training.split import difference_hash, group_near_duplicates, split_by_group


def list_photos(folder: Path, limit: int | None = None) -> list[Path]:
    """The photos directly in ``folder``, sorted by name; at most ``limit``, evenly spaced.

    What only has the name of a photo is passed over: links to nothing, folders, pipes.

    Raises:
        ValueError: it is not a folder, or holds none.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of photos")
    paths = sorted(p for p in folder.iterdir() if is_photo(p.name) and p.is_file())
    if not paths:
        raise ValueError(f"no photos ({', '.join(sorted(IMAGE_SUFFIXES))}) in {folder}")
    count = len(paths) if limit is None else min(limit, len(paths))
    return [paths[i * len(paths) // count] for i in range(count)]


def split_photos(folder: Path, seed: int) -> dict[str, list[Path]]:
    """``train``, ``selection`` and ``test`` photos of ``folder``; look-alikes stay together.

    Raises:
        ValueError: the folder holds no photos, or a part of the split is left with none.
    """
    paths = list_photos(folder)
    # By hashes alone: among photos as few as these a pair by chance costs nothing, and the bundled
    # checkpoint's split was drawn so.
    groups = group_near_duplicates([difference_hash(open_photo(path)) for path in paths])
    parts = split_by_group([path.name for path in paths], groups, SPLIT_FRACTIONS, seed)
    split = {
        part: [path for path, own in zip(paths, parts, strict=True) if own == part]
        for part in SPLIT_FRACTIONS
    }
    if empty := [part for part, own in split.items() if not own]:
        raise ValueError(
            f"the {len(paths)} photos of {folder}, {len(set(groups))} without look-alikes, leave "
            f"no photo for {', '.join(empty)}: distillation needs more photos"
        )
    return split
