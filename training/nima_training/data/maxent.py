"""Maximum-entropy rating distributions, for data sets that publish a mean (and a spread) only.

Talebi & Milanfar (2017, section II-C) turn TID2013's means into distributions this way. With a
mean alone, ``p_k ~ exp(a k)``; with a standard deviation too, ``p_k ~ exp(a k + b k^2)``. The
coefficients minimise the convex dual ``log Z(a, b) - a E[k] - b E[k^2]``.
"""

from __future__ import annotations

import numpy as np

RATINGS = np.arange(1, 11, dtype=np.float64)
_MARGIN = 1e-3
_TOLERANCE = 1e-10
_MAX_STEPS = 300


def variance_limits(mean: float) -> tuple[float, float]:
    """Smallest and largest variance that a distribution over 1..10 with this mean can have."""
    fraction = mean - np.floor(mean)
    return float(fraction * (1 - fraction)), float((mean - 1) * (10 - mean))


def maximum_entropy(mean: float, std: float | None = None) -> np.ndarray:
    """Probabilities ``[10]`` with the given mean and, if given, standard deviation.

    Raises:
        ValueError: not finite, or no distribution over 1..10 has these moments.
    """
    if not np.isfinite(mean) or not 1 <= mean <= 10:
        raise ValueError(f"mean {mean} is not in 1..10")
    if mean in (1.0, 10.0):
        if std:
            raise ValueError(f"std {std} is impossible at mean {mean}: at most 0")
        return np.asarray(mean == RATINGS, dtype=np.float64)
    # Centred and scaled features keep the Hessian well conditioned.
    x = (RATINGS - mean) / 4.5
    features, target = x[:, None], np.zeros(1)
    if std is not None:
        low, high = variance_limits(mean)
        if not np.isfinite(std) or std < 0 or not low - 1e-6 <= std**2 <= high + 1e-6:
            raise ValueError(
                f"std {std} is impossible at mean {mean}: must lie in "
                f"{low**0.5:.4f}..{high**0.5:.4f}"
            )
        # At the very limits the coefficients are infinite; stay a thousandth inside.
        variance = float(np.clip(std**2, low + _MARGIN, high * (1 - _MARGIN)))
        features, target = np.stack([x, x**2], axis=1), np.array([0.0, variance / 4.5**2])
    return _solve(features, target)


def _solve(features: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Damped Newton on the dual; returns the probabilities."""
    coefficients = np.zeros(features.shape[1])

    def dual(values: np.ndarray) -> tuple[float, np.ndarray]:
        scores = features @ values
        peak = scores.max()
        weights = np.exp(scores - peak)
        total = weights.sum()
        return float(np.log(total) + peak - values @ target), weights / total

    value, p = dual(coefficients)
    for _ in range(_MAX_STEPS):
        moments = p @ features
        gradient = moments - target
        if np.abs(gradient).max() < _TOLERANCE:
            break
        centred = features - moments
        hessian = (centred * p[:, None]).T @ centred + 1e-14 * np.eye(len(target))
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while True:
            candidate = coefficients - size * step
            new_value, new_p = dual(candidate)
            if new_value <= value - 1e-4 * size * float(gradient @ step) or size < 1e-8:
                break
            size /= 2
        coefficients, value, p = candidate, new_value, new_p
    return p
