"""Which results to show, and in which order."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from nima_client.library.rows import Row
from nima_client.library.text import natural

SORT_KEYS: dict[str, Callable[[Row], Any]] = {
    "mean": lambda row: row.mean,
    "std": lambda row: row.std,
    "percentile": lambda row: -1.0 if row.percentile is None else row.percentile,
    "file": lambda row: [natural(part) for part in row.file.split("/")],
}
"""What rows can be sorted by; a leading ``-`` sorts downwards."""


@dataclass(frozen=True)
class Selection:
    """A choice among results. Limits are applied first, then top or bottom, then the order.

    Attributes:
        minimum: smallest mean, inclusive.
        maximum: largest mean, inclusive.
        top: only so many with the highest means.
        bottom: only so many with the lowest means.
        sort: a key of :data:`SORT_KEYS`, ``-key`` for downwards, ``""`` for the input's order (with
            top: best first; with bottom: worst first).
    """

    minimum: float | None = None
    maximum: float | None = None
    top: int | None = None
    bottom: int | None = None
    sort: str = ""

    def __post_init__(self) -> None:
        if self.top is not None and self.bottom is not None:
            raise ValueError("top and bottom exclude each other")
        if min(self.top or 0, self.bottom or 0) < 0:
            raise ValueError("top and bottom count photos: 0 or more")
        if self.sort and self.sort.removeprefix("-") not in SORT_KEYS:
            raise ValueError(f"sort by {', '.join(SORT_KEYS)}, or -mean … for downwards")

    def apply(self, rows: Iterable[Row]) -> Iterable[Row]:
        """The chosen rows; a stream where neither order nor top or bottom asks for all of them."""
        chosen: Iterable[Row] = self._within(rows)
        # Ties keep the input's order.
        if self.top is not None:
            chosen = heapq.nlargest(self.top, chosen, key=lambda row: row.mean)
        elif self.bottom is not None:
            chosen = heapq.nsmallest(self.bottom, chosen, key=lambda row: row.mean)
        if self.sort:
            key = SORT_KEYS[self.sort.removeprefix("-")]
            chosen = sorted(chosen, key=key, reverse=self.sort.startswith("-"))
        return chosen

    def _within(self, rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            low = self.minimum is None or row.mean >= self.minimum
            high = self.maximum is None or row.mean <= self.maximum
            if low and high:
                yield row
