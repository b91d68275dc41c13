"""Two sets of scores of the same photos: how alike are they?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nima_client.library.rows import Row


@dataclass(frozen=True)
class Difference:
    """One photo in both sets.

    Attributes:
        file: its name.
        first: mean in the first set, 1..10.
        second: mean in the second set, 1..10.
        change: second minus first.
        emd: earth mover's distance of the two distributions, r = 2 as in the NIMA paper (Talebi &
            Milanfar 2017, eq. 1): root of the mean squared difference of the cumulative
            distributions, 0..1.
    """

    file: str
    first: float
    second: float
    change: float
    emd: float


@dataclass(frozen=True)
class Comparison:
    """What two sets of scores have in common.

    Correlations are None where they are not defined (fewer than two photos, or all scores equal).

    Attributes:
        photos: photos in both sets.
        only_first: photos in the first set alone.
        only_second: photos in the second set alone.
        pearson: linear correlation of the means, -1..1.
        spearman: rank correlation of the means, -1..1.
        kendall: Kendall's tau-b of the means, -1..1.
        mean_change: mean of second minus first.
        mean_absolute_change: mean of its size.
        largest_change: largest size of a change.
        emd: mean earth mover's distance (r = 2) of the distributions.
        differences: every common photo, the largest change first.
        first_weights: what made the first set: name and start of the SHA-256 of each checkpoint.
        second_weights: what made the second set.
    """

    photos: int
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    pearson: float | None
    spearman: float | None
    kendall: float | None
    mean_change: float
    mean_absolute_change: float
    largest_change: float
    emd: float
    differences: tuple[Difference, ...]
    first_weights: tuple[str, ...] = ()
    second_weights: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return asdict(self)


def compare(first: Sequence[Row], second: Sequence[Row]) -> Comparison:
    """Compare two sets of scores, photo by photo, matched by file name.

    Raises:
        ValueError: no photo is in both sets, or there is none in one of them.
        ModuleNotFoundError: scipy is not installed.
    """
    for rows, which in ((first, "first"), (second, "second")):
        if not rows:
            raise ValueError(f"there are no scores in the {which} file")
    left = {row.file: row for row in first}
    right = {row.file: row for row in second}
    both = [name for name in left if name in right]
    if not both:
        raise ValueError(
            "no photo is in both files: names must be equal (were they scored from other folders?)"
        )
    a = np.array([left[name].mean for name in both])
    b = np.array([right[name].mean for name in both])
    emds = _emd(
        np.array([left[name].distribution for name in both]),
        np.array([right[name].distribution for name in both]),
    )
    differences = [
        Difference(name, float(x), float(y), float(y - x), float(emd))
        for name, x, y, emd in zip(both, a, b, emds, strict=True)
    ]
    differences.sort(key=lambda d: (-abs(d.change), d.file))
    return Comparison(
        photos=len(both),
        only_first=tuple(name for name in left if name not in right),
        only_second=tuple(name for name in right if name not in left),
        **_correlations(a, b),
        mean_change=float((b - a).mean()),
        mean_absolute_change=float(np.abs(b - a).mean()),
        largest_change=float(np.abs(b - a).max()),
        emd=float(emds.mean()),
        differences=tuple(differences),
        first_weights=_weights(first),
        second_weights=_weights(second),
    )


def _weights(rows: Sequence[Row]) -> tuple[str, ...]:
    named = {(row.checkpoint, row.checkpoint_sha256) for row in rows if row.checkpoint_sha256}
    return tuple(f"{name} ({sha256[:12]})" for name, sha256 in sorted(named))


def _emd(p: np.ndarray[Any, Any], q: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """EMD with r = 2 of distributions [N, 10], one a row: [N]."""
    gap = np.cumsum(p, axis=1) - np.cumsum(q, axis=1)
    return np.asarray(np.sqrt((gap**2).mean(axis=1)))


def _correlations(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> dict[str, float | None]:
    from scipy import stats

    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return {"pearson": None, "spearman": None, "kendall": None}
    found = {
        "pearson": stats.pearsonr(a, b)[0],
        "spearman": stats.spearmanr(a, b)[0],
        "kendall": stats.kendalltau(a, b)[0],
    }
    return {k: float(v) if math.isfinite(v) else None for k, v in found.items()}
