"""Splits without leakage: photos that look alike stay on one side.

A difference hash (64 bits: is each pixel of a 9x8 thumbnail brighter than its right neighbour)
finds re-encoded and resized copies; groups of near-equal hashes are then dealt out by a hash of
their first name, so that a split doesn't change when photos are added.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

MAX_HAMMING = 4
MAX_PAIRWISE = 20_000


def difference_hash(image: Image.Image) -> int:
    """64-bit dHash of an image."""
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BILINEAR), dtype=np.int16)
    return int.from_bytes(np.packbits(small[:, :-1] > small[:, 1:]).tobytes(), "big")


def group_near_duplicates(hashes: Sequence[int], max_hamming: int = MAX_HAMMING) -> list[int]:
    """The group of each item: the smallest index reachable through pairs of near-equal hashes.

    Beyond :data:`MAX_PAIRWISE` items only equal hashes are joined, as pairs grow with the square.
    """
    if len(hashes) > MAX_PAIRWISE:
        first: dict[int, int] = {}
        return [first.setdefault(value, index) for index, value in enumerate(hashes)]
    values = np.array(hashes, dtype=np.uint64)
    bits = np.unpackbits(values.view(np.uint8).reshape(len(values), 8), axis=1).astype(np.int16)
    parent = list(range(len(values)))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for index in range(len(values)):
        distance = np.abs(bits[index + 1 :] - bits[index]).sum(axis=1)
        for other in np.flatnonzero(distance <= max_hamming):
            a, b = sorted((root(index), root(index + 1 + int(other))))
            parent[b] = a
    return [root(index) for index in range(len(values))]


def unit_hash(key: str, seed: int) -> float:
    """A number in [0, 1) that depends on ``key`` and ``seed`` only."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def split_by_group(
    names: Sequence[str], groups: Sequence[int], fractions: dict[str, float], seed: int = 0
) -> list[str]:
    """Deal whole groups to the parts of ``fractions`` (names to shares that sum to 1)."""
    if abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(f"split fractions must sum to 1, got {fractions}")
    parts = list(fractions)
    edges = np.cumsum([fractions[part] for part in parts])
    result = []
    for group in groups:
        position = unit_hash(names[group], seed)
        result.append(parts[min(int(np.searchsorted(edges, position, "right")), len(parts) - 1)])
    return result
