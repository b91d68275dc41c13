"""Plots as inline SVG, for self-contained HTML pages."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nima_training.metrics import mean_interval

RATINGS = np.arange(1, 11)
TRUE, PREDICTED = "#8a8f98", "#1f6feb"
STYLE: dict[Any, Any] = {
    "font.size": 9, "font.family": "sans-serif", "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e9ee", "axes.axisbelow": True,
    "axes.edgecolor": "#8a8f98", "axes.labelcolor": "#3d444d", "xtick.color": "#57606a",
    "ytick.color": "#57606a", "legend.frameon": False, "figure.facecolor": "none",
    "axes.facecolor": "none", "svg.hashsalt": "nima", "svg.fonttype": "none",
}  # fmt: skip


def svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element; the same figure gives the same text."""
    buffer = io.StringIO()
    with plt.rc_context(STYLE):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    with plt.rc_context(STYLE):
        return plt.subplots(figsize=(width, height))


def distribution_bars(predicted: np.ndarray, true: np.ndarray | None = None) -> str:
    """Predicted (and true) probabilities of one photo."""
    figure, axes = _axes(2.4, 1.3)
    if true is not None:
        axes.bar(RATINGS - 0.2, true, 0.4, color=TRUE, label="true")
    offset = 0.2 if true is not None else 0.0
    axes.bar(RATINGS + offset, predicted, 0.4, color=PREDICTED, label="predicted")
    axes.set_xticks(RATINGS)
    axes.tick_params(labelsize=6.5)
    axes.grid(visible=False, axis="x")
    axes.yaxis.set_major_locator(MaxNLocator(3))
    return svg(figure)


def scatter(true: np.ndarray, predicted: np.ndarray, label: str) -> str:
    """Predicted against true values with the diagonal."""
    figure, axes = _axes(3.4, 3.4)
    axes.scatter(true, predicted, s=14, alpha=0.45, color=PREDICTED, linewidths=0)
    low, high = min(true.min(), predicted.min()), max(true.max(), predicted.max())
    axes.plot([low, high], [low, high], color=TRUE, linewidth=1)
    axes.set_xlabel(f"true {label}")
    axes.set_ylabel(f"predicted {label}")
    return svg(figure)


def calibration(true: np.ndarray, predicted: np.ndarray, bins: int = 10) -> str:
    """True mean, with its standard error, of photos binned by predicted mean (equal counts)."""
    figure, axes = _axes(3.4, 3.4)
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
    figure, axes = _axes(3.4, 3.4)
    edges = np.linspace(1, 10, 46)
    for (label, values), colour in zip(series.items(), (TRUE, PREDICTED), strict=False):
        axes.hist(values, edges.tolist(), alpha=0.6, label=label, color=colour)
    axes.set_xlabel("mean rating")
    axes.legend(frameon=False)
    axes.set_ylabel("photos")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
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
    figure, axes = _axes(3.2, 2.4)
    low, high = mean_interval(values)
    axes.plot(strengths, values.mean(axis=1), marker="o", color=PREDICTED)
    axes.fill_between(strengths, low, high, color=PREDICTED, alpha=0.2)
    axes.axhline(clean, color=TRUE, linewidth=1, linestyle="--")
    axes.set_xlabel(unit)
    axes.set_ylabel(label)
    return svg(figure)
