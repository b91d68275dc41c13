"""The official AVA lists (Murray et al., CVPR 2012): generic split, 14 styles, tags."""

from __future__ import annotations

from pathlib import Path

from nima_training.data.sources import LabelError


def read_ids(path: Path) -> list[str]:
    """A ``.jpgl`` list: one image id a line."""
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def read_names(path: Path) -> dict[int, str]:
    """``tags.txt``, ``styles.txt`` or ``challenges.txt``: a number and a name on each line."""
    names = {}
    for line in path.read_text().splitlines():
        if line.strip():
            number, name = line.split(maxsplit=1)
            names[int(number)] = name.strip()
    return names


def read_styles(folder: Path) -> dict[str, list[str]]:
    """Image id -> names of its styles, from the training (one label) and test (several) lists.

    Raises:
        LabelError: a list and its labels have different lengths.
    """
    names = read_names(folder / "styles.txt")
    styles: dict[str, list[str]] = {}
    train = read_ids(folder / "train.jpgl")
    labels = (folder / "train.lab").read_text().split()
    if len(train) != len(labels):
        raise LabelError(f"train.jpgl has {len(train)} rows, train.lab {len(labels)}")
    for image_id, label in zip(train, labels, strict=True):
        styles.setdefault(image_id, []).append(names[int(label)])
    test = read_ids(folder / "test.jpgl")
    rows = [line.split() for line in (folder / "test.multilab").read_text().splitlines() if line]
    if len(test) != len(rows):
        raise LabelError(f"test.jpgl has {len(test)} rows, test.multilab {len(rows)}")
    for image_id, flags in zip(test, rows, strict=True):
        if len(flags) != len(names):
            raise LabelError(
                f"test.multilab: {len(flags)} flags for image {image_id}, not {len(names)}"
            )
        own = [names[number] for number, flag in enumerate(flags, start=1) if flag == "1"]
        styles.setdefault(image_id, []).extend(name for name in own if name not in styles[image_id])
    return styles


def official_test_ids(lists: Path) -> set[str]:
    """The ids of the official test split (``generic_test.jpgl``)."""
    path = lists / "generic_test.jpgl" if lists.is_dir() else lists
    if not path.is_file():
        raise LabelError(f"no official test list at {path}")
    return set(read_ids(path))
