"""Plots as inline SVG, for self-contained HTML pages."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

RATINGS = np.arange(1, 11)
TRUE, PREDICTED = "#8a8f98", "#1f6feb"


def svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element; the same figure gives the same text."""
    buffer = io.StringIO()
    with plt.rc_context({"svg.hashsalt": "nima", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def distribution_bars(predicted: np.ndarray, true: np.ndarray | None = None) -> str:
    """Predicted (and true) probabilities of one photo."""
    figure, axes = plt.subplots(figsize=(2.4, 1.3))
    if true is not None:
        axes.bar(RATINGS - 0.2, true, 0.4, color=TRUE, label="true")
    offset = 0.2 if true is not None else 0.0
    axes.bar(RATINGS + offset, predicted, 0.4, color=PREDICTED, label="predicted")
    axes.set_xticks(RATINGS)
    axes.tick_params(labelsize=6)
    return svg(figure)


def scatter(true: np.ndarray, predicted: np.ndarray, label: str) -> str:
    """Predicted against true values with the diagonal."""
    figure, axes = plt.subplots(figsize=(4, 4))
    axes.scatter(true, predicted, s=6, alpha=0.4, color=PREDICTED, linewidths=0)
    low, high = min(true.min(), predicted.min()), max(true.max(), predicted.max())
    axes.plot([low, high], [low, high], color=TRUE, linewidth=1)
    axes.set_xlabel(f"true {label}")
    axes.set_ylabel(f"predicted {label}")
    return svg(figure)


def calibration(true: np.ndarray, predicted: np.ndarray, bins: int = 10) -> str:
    """True mean, with its standard error, of photos binned by predicted mean (equal counts)."""
    figure, axes = plt.subplots(figsize=(4, 4))
    groups = [g for g in np.array_split(np.argsort(predicted, kind="stable"), bins) if len(g)]
    x = [predicted[g].mean() for g in groups]
    y = [true[g].mean() for g in groups]
    error = [true[g].std() / np.sqrt(len(g)) for g in groups]
    axes.errorbar(x, y, yerr=error, marker="o", color=PREDICTED, capsize=2)
    low, high = min([*x, *y]), max([*x, *y])
    axes.plot([low, high], [low, high], color=TRUE, linewidth=1)
    axes.set_xlabel("predicted mean")
    axes.set_ylabel("true mean of the bin")
    return svg(figure)


def histogram(series: Mapping[str, np.ndarray]) -> str:
    """Histograms of mean ratings, overlaid."""
    figure, axes = plt.subplots(figsize=(4, 3))
    edges = np.linspace(1, 10, 46)
    for (label, values), colour in zip(series.items(), (TRUE, PREDICTED), strict=False):
        axes.hist(values, edges.tolist(), alpha=0.6, label=label, color=colour)
    axes.set_xlabel("mean rating")
    axes.legend()
    return svg(figure)


def against_strength(
    strengths: Sequence[float], values: np.ndarray, unit: str, label: str, clean: float
) -> str:
    """A mean over photos against strength with its 95 % bootstrap interval.

    Args:
        strengths: ``L`` levels, ascending.
        values: ``[L, N]``, one row a level, one column a photo.
        unit: of the strengths.
        label: of the values.
        clean: the value without distortion, drawn as a line.
    """
    figure, axes = plt.subplots(figsize=(3.6, 2.6))
    rows = np.random.default_rng(0).integers(0, values.shape[1], (500, values.shape[1]))
    resampled = values[:, rows].mean(axis=2)
    low, high = np.quantile(resampled, [0.025, 0.975], axis=1)
    axes.plot(strengths, values.mean(axis=1), marker="o", color=PREDICTED)
    axes.fill_between(strengths, low, high, color=PREDICTED, alpha=0.2)
    axes.axhline(clean, color=TRUE, linewidth=1)
    axes.set_xlabel(unit)
    axes.set_ylabel(label)
    return svg(figure)
