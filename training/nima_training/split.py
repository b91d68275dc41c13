"""Splits without leakage: photos that look alike stay on one side.

A difference hash (64 bits: is each pixel of a 9x8 thumbnail brighter than its right neighbour)
finds re-encoded and resized copies; groups of near-equal hashes are then dealt out by a hash of
their first name, so that a split depends neither on the order of the photos nor on other photos.
Few groups are put in the order of that hash and cut instead, since chance would give a part far
more or less than its share.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence

import numpy as np
from PIL import Image

MAX_HAMMING = 4
MAX_GREY = 4.0
"""Mean difference of the grey thumbnails of one picture, of 255: copies at two fifths of the size
and JPEG quality 30 stayed below 1.4, other photos with near-equal hashes above 20."""
FEW_GROUPS = 200
"""With fewer groups than these, :func:`split_by_group` cuts at the shares."""


def grey_thumbnail(image: Image.Image) -> np.ndarray:
    """Grey values uint8 ``[8, 9]`` of an image."""
    return np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BILINEAR))


def difference_hash(image: Image.Image) -> int:
    """64-bit dHash of an image."""
    return thumbnail_hash(grey_thumbnail(image))


def thumbnail_hash(grey: np.ndarray) -> int:
    """64-bit dHash of the image of a :func:`grey_thumbnail`, uint8 ``[8, 9]``."""
    return int.from_bytes(np.packbits(grey[:, :-1] > grey[:, 1:]).tobytes(), "big")


class _Groups:
    """Disjoint sets of indexes; the smallest index names its set."""

    def __init__(self, count: int) -> None:
        self.parent = list(range(count))

    def root(self, item: int) -> int:
        while self.parent[item] != item:
            self.parent[item] = self.parent[self.parent[item]]
            item = self.parent[item]
        return item

    def join(self, first: int, second: int) -> None:
        a, b = sorted((self.root(first), self.root(second)))
        self.parent[b] = a

    def names(self) -> list[int]:
        return [self.root(index) for index in range(len(self.parent))]


def group_near_duplicates(
    hashes: Sequence[int], max_hamming: int = MAX_HAMMING, thumbnails: np.ndarray | None = None
) -> list[int]:
    """The group of each item: the smallest index reachable through pairs of near-equal hashes.

    Among many photos some hashes are near-equal by chance (all pictures that are bright in the
    middle are alike to them: of 19 pairs so joined in 1,964 photos, 17 showed nothing in common),
    and groups grow from one to the next. With ``thumbnails``, uint8
    ``[N, ...]`` of :func:`grey_thumbnail`, a pair counts only if these agree to :data:`MAX_GREY`.

    Hashes within ``max_hamming`` bits agree in at least one of ``max_hamming + 1`` slices of their
    64 bits, so only items with an equal slice are compared: no pair is missed, at AVA's size too.
    """
    values = np.array(hashes, dtype=np.uint64)
    groups = _Groups(len(values))
    grey = None if thumbnails is None else np.asarray(thumbnails).reshape(len(values), -1)
    # Equal items first: thousands of blank pictures are one item from here on.
    items = values if grey is None else np.column_stack([values[:, None].view(np.uint8), grey])
    _, first, inverse = np.unique(items, axis=0, return_index=True, return_inverse=True)
    for index, slot in enumerate(inverse.ravel()):
        groups.join(index, int(first[slot]))
    distinct = values[first]
    small = None if grey is None else grey[first].astype(np.int16)
    edges = np.linspace(0, 64, max_hamming + 2).astype(int)
    for low, high in itertools.pairwise(edges):
        keys = (distinct >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(keys, kind="stable")
        cuts = np.flatnonzero(np.diff(keys[order])) + 1
        for bucket in np.split(order, cuts):
            for position in range(len(bucket) - 1):
                rest = bucket[position + 1 :]
                near = rest[_bits(distinct[rest] ^ distinct[bucket[position]]) <= max_hamming]
                if small is not None and len(near):
                    apart = np.abs(small[near] - small[bucket[position]]).mean(axis=1)
                    near = near[apart <= MAX_GREY]
                for other in near:
                    groups.join(int(first[bucket[position]]), int(first[other]))
    return groups.names()


def _bits(values: np.ndarray) -> np.ndarray:
    """The number of set bits of each uint64."""
    return np.asarray(_BITS_OF_16[values.view(np.uint16).reshape(-1, 4)].sum(axis=1))


_BITS_OF_16 = np.array([value.bit_count() for value in range(1 << 16)], dtype=np.uint8)


def join_groups(groups: Sequence[int], labels: Sequence[str]) -> list[int]:
    """Widen groups so that items of equal label are in one, too."""
    joined = _Groups(len(groups))
    first: dict[str, int] = {}
    for index, (group, label) in enumerate(zip(groups, labels, strict=True)):
        joined.join(index, group)
        joined.join(index, first.setdefault(label, index))
    return joined.names()


def first_names(names: Sequence[str], groups: Sequence[int]) -> list[str]:
    """For each item the alphabetically first of the names in its group, whatever their order."""
    first: dict[int, str] = {}
    for name, group in zip(names, groups, strict=True):
        first[group] = min(name, first.get(group, name))
    return [first[group] for group in groups]


def unit_hash(key: str, seed: int) -> float:
    """A number in [0, 1) that depends on ``key`` and ``seed`` only."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def split_by_group(
    names: Sequence[str], groups: Sequence[int], fractions: dict[str, float], seed: int = 0
) -> list[str]:
    """Deal whole groups to the parts of ``fractions``.

    From :data:`FEW_GROUPS` groups on, each goes by the hash of its name alone, and adding photos
    moves none. Fewer are cut at the shares, and each part has a group if there are enough.

    Args:
        names: of the items; a group is called by the name of the item that it is numbered by.
        groups: the group of each item to deal, as from :func:`join_groups`.
        fractions: part -> its share; the shares sum to 1.
        seed: of the hash.

    Returns:
        The part of each item of ``groups``.

    Raises:
        ValueError: the shares do not sum to 1.
    """
    if abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(f"split fractions must sum to 1, got {fractions}")
    if len(distinct := set(groups)) < FEW_GROUPS:
        order = sorted(distinct, key=lambda group: (unit_hash(names[group], seed), group))
        dealt = [
            part for part, count in _counts(len(order), fractions).items() for _ in range(count)
        ]
        part_of = dict(zip(order, dealt, strict=True))
        return [part_of[group] for group in groups]
    parts = list(fractions)
    edges = np.cumsum([fractions[part] for part in parts])
    result = []
    for group in groups:
        position = unit_hash(names[group], seed)
        result.append(parts[min(int(np.searchsorted(edges, position, "right")), len(parts) - 1)])
    return result


def _counts(total: int, fractions: dict[str, float]) -> dict[str, int]:
    """``total`` in whole numbers by shares (largest remainders); none is 0 that need not be."""
    counts = {part: int(share * total + 1e-9) for part, share in fractions.items()}
    by_remainder = sorted(fractions, key=lambda part: counts[part] - fractions[part] * total)
    for part in by_remainder[: total - sum(counts.values())]:
        counts[part] += 1
    for part, share in fractions.items():
        largest = max(counts, key=lambda name: counts[name])
        if share > 0 and counts[part] == 0 and counts[largest] > 1:
            counts[part] += 1
            counts[largest] -= 1
    return counts
