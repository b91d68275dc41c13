"""The official AVA lists (Murray et al., CVPR 2012): generic split, 14 styles, tags."""

from __future__ import annotations

from pathlib import Path

from nima_client._numbers import whole
from nima_training.data.sources import LabelError, label_text


def read_ids(path: Path) -> list[str]:
    """A ``.jpgl`` list: one image id a line."""
    return [line.strip() for line in label_text(path).splitlines() if line.strip()]


def read_names(path: Path) -> dict[int, str]:
    """``tags.txt``, ``styles.txt`` or ``challenges.txt``: a number and a name on each line.

    Raises:
        LabelError: a line is something else.
    """
    names = {}
    for row, line in enumerate(label_text(path).splitlines(), start=1):
        if line.strip():
            number, *name = line.split(maxsplit=1)
            try:
                names[whole(number)] = name[0].strip()
            except (ValueError, IndexError):
                raise LabelError(
                    f"{path.name}, row {row}: needs a number and a name, not {line!r}"
                ) from None
    return names


def read_styles(folder: Path) -> dict[str, list[str]]:
    """Image id -> names of its styles, from the training (one label) and test (several) lists.

    Raises:
        LabelError: a list and its labels have different lengths, or a label is no style's number.
    """
    names = read_names(folder / "styles.txt")
    if sorted(names) != list(range(1, len(names) + 1)):
        raise LabelError(f"styles.txt numbers its styles {sorted(names)}, not from 1 on")
    styles: dict[str, list[str]] = {}
    train = read_ids(folder / "train.jpgl")
    labels = label_text(folder / "train.lab").split()
    if len(train) != len(labels):
        raise LabelError(f"train.jpgl has {len(train)} rows, train.lab {len(labels)}")
    for image_id, label in zip(train, labels, strict=True):
        try:
            styles.setdefault(image_id, []).append(names[whole(label)])
        except (ValueError, KeyError):
            raise LabelError(
                f"train.lab: {label!r} of image {image_id} is no style of styles.txt"
            ) from None
    test = read_ids(folder / "test.jpgl")
    rows = [
        flags
        for line in label_text(folder / "test.multilab").splitlines()
        if (flags := line.split())
    ]
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
