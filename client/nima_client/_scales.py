"""Between what a score's numbers lie: what is beyond comes of a broken engine or a foreign file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from nima_client.contract import RATINGS

_ROUNDED = 0.05  # an engine that computes in FP16 may be beyond 10 by 0.01; other programs round


class Scale(NamedTuple):
    """A closed interval."""

    low: float
    high: float

    def holds(self, values: Sequence[float]) -> bool:
        """Whether all of the values, one or more and finite, are within it but for rounding."""
        return self.low - _ROUNDED <= min(values) and max(values) <= self.high + _ROUNDED


MEAN = Scale(RATINGS[0], RATINGS[-1])
STD = Scale(0.0, (RATINGS[-1] - RATINGS[0]) / 2)
PROBABILITY = Scale(0.0, 1.0)
PERCENTILE = Scale(0.0, 100.0)
