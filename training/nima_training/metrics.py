"""How close predicted rating distributions are to true ones.

Figures per set: Pearson (LCC), Spearman (SRCC) and Kendall (KRCC) correlation of the mean and of
the standard deviation, two-class accuracy at the AVA threshold of 5 (Murray et al., 2012: a photo
is "good" when its mean is above 5), mean absolute errors, and EMD with r = 1 and with r = 2.
Intervals are percentile bootstraps over photos (Efron & Tibshirani, 1993).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from scipy import stats

THRESHOLD = 5.0
DECIMALS = 9
ROUNDING = 10.0**-DECIMALS
"""Far above what FP64 rounds in a mean, far below what one vote moves it."""
RATINGS = np.arange(1, 11, dtype=np.float64)


def moments(distributions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, FP64 ``[N]`` each, of distributions ``[N, 10]``."""
    p = np.asarray(distributions, dtype=np.float64)
    mean = p @ RATINGS
    variance = (p * (RATINGS - mean[:, None]) ** 2).sum(axis=1)
    return mean, np.sqrt(np.maximum(variance, 0))


def emd(predicted: np.ndarray, target: np.ndarray, r: float) -> np.ndarray:
    """EMD of each row, FP64 ``[N]``; the definition of :func:`nima_training.losses.emd`."""
    difference = np.abs(np.cumsum(predicted, axis=-1) - np.cumsum(target, axis=-1))
    return np.asarray((difference**r).mean(axis=-1) ** (1 / r))


def _correlation(function: Callable[..., object]) -> Callable[[np.ndarray, np.ndarray], float]:
    def measure(a: np.ndarray, b: np.ndarray) -> float:
        # Equal means of different votes differ in their last bits, which are no order.
        a, b = (np.asarray(values, np.float64).round(DECIMALS) for values in (a, b))
        if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
            return float("nan")  # undefined, and scipy would warn
        return float(function(a, b).statistic)  # type: ignore[attr-defined]

    return measure


pearson = _correlation(stats.pearsonr)
spearman = _correlation(stats.spearmanr)
kendall = _correlation(stats.kendalltau)


def is_good(distributions: np.ndarray) -> np.ndarray:
    """Whether the mean is above 5, bool ``[N]``, of distributions ``[N, 10]``.

    Of ratings counted from the threshold: a mean of exactly 5 comes out as 5 or a little above it,
    as the rounding goes.
    """
    above = np.asarray(distributions, dtype=np.float64) @ (RATINGS - THRESHOLD)
    return np.asarray(above > ROUNDING)


def _columns(predicted: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
    mean, std = moments(predicted)
    true_mean, true_std = moments(target)
    return {
        "mean": mean, "std": std, "true_mean": true_mean, "true_std": true_std,
        "good": is_good(predicted), "true_good": is_good(target),
        "emd_r1": emd(predicted, target, 1), "emd_r2": emd(predicted, target, 2),
    }  # fmt: skip


Metric = Callable[[Mapping[str, np.ndarray]], float]
METRICS: dict[str, Metric] = {
    "emd_r1": lambda c: float(c["emd_r1"].mean()),
    "emd_r2": lambda c: float(c["emd_r2"].mean()),
    "mae_mean": lambda c: float(np.abs(c["mean"] - c["true_mean"]).mean()),
    "mae_std": lambda c: float(np.abs(c["std"] - c["true_std"]).mean()),
    "accuracy": lambda c: float((c["good"] == c["true_good"]).mean()),
    "pearson_mean": lambda c: pearson(c["mean"], c["true_mean"]),
    "spearman_mean": lambda c: spearman(c["mean"], c["true_mean"]),
    "kendall_mean": lambda c: kendall(c["mean"], c["true_mean"]),
    "pearson_std": lambda c: pearson(c["std"], c["true_std"]),
    "spearman_std": lambda c: spearman(c["std"], c["true_std"]),
    "kendall_std": lambda c: kendall(c["std"], c["true_std"]),
}
LOWER_IS_BETTER = frozenset({"emd_r1", "emd_r2", "mae_mean", "mae_std"})


def as_error(metric: str, result: Mapping[str, Mapping[str, float | None]]) -> float:
    """A metric of :func:`evaluate` as a number to minimise; an undefined one is the worst."""
    value = result[metric]["value"]
    if value is None:
        return float("inf")
    return value if metric in LOWER_IS_BETTER else -value


def evaluate(
    predicted: np.ndarray,
    target: np.ndarray,
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, float | None]]:
    """All of :data:`METRICS`.

    Args:
        predicted: probabilities ``[N, 10]``.
        target: probabilities ``[N, 10]``.
        bootstrap: resamples for the interval; 0 leaves the intervals out.
        confidence: coverage of the interval.
        seed: of the resampling.

    Returns:
        ``{metric: {"value": …, "low": …, "high": …}}``; an undefined value (a correlation of
        constants) is None, as JSON has no NaN.

    Raises:
        ValueError: empty, of different shapes, or not finite.
    """
    predicted, target = np.asarray(predicted, np.float64), np.asarray(target, np.float64)
    if predicted.shape != target.shape or predicted.ndim != 2 or len(predicted) == 0:
        raise ValueError(f"need two equal [N, 10] arrays, got {predicted.shape} and {target.shape}")
    if not (np.isfinite(predicted).all() and np.isfinite(target).all()):
        raise ValueError("distributions must be finite")
    columns = _columns(predicted, target)
    result: dict[str, dict[str, float | None]] = {
        name: {"value": _finite(metric(columns))} for name, metric in METRICS.items()
    }
    if bootstrap:
        generator = np.random.default_rng(seed)
        draws: dict[str, list[float]] = {name: [] for name in METRICS}
        for _ in range(bootstrap):
            rows = generator.integers(0, len(predicted), len(predicted))
            sample = {name: column[rows] for name, column in columns.items()}
            for name, metric in METRICS.items():
                draws[name].append(metric(sample))
        tail = (1 - confidence) / 2
        for name, values in draws.items():
            finite = np.array(values)[np.isfinite(values)]
            low, high = np.quantile(finite, [tail, 1 - tail]) if finite.size else (np.nan, np.nan)
            result[name] |= {"low": _finite(low), "high": _finite(high)}
    return result


def mean_interval(
    values: np.ndarray, draws: int = 1000, confidence: float = 0.95, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap over the last axis: low and high end of the mean of ``[..., N]``."""
    rows = np.random.default_rng(seed).integers(0, values.shape[-1], (draws, values.shape[-1]))
    tail = (1 - confidence) / 2
    low, high = np.quantile(values[..., rows].mean(axis=-1), [tail, 1 - tail], axis=-1)
    return np.asarray(low), np.asarray(high)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
