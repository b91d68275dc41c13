"""Plots of a run: throughput and latency against load, and where the time goes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib

from nima_build.bench.report import Row, rows
from nima_build.bench.session import Result
from nima_client._files import write_atomic

matplotlib.use("Agg")

from matplotlib import pyplot as plt

# Of Okabe and Ito's palette those that differ for every kind of colour vision, and in print.
_BLACK, _ORANGE, _SKY_BLUE, _BLUE = "#000000", "#e69f00", "#56b4e9", "#0072b2"
_STAGES = {"decode": _SKY_BLUE, "network": _BLUE, "queue": _ORANGE, "transport": _BLACK}
_PERCENTILES = (("p50", _BLUE, "o"), ("p95", _ORANGE, "^"), ("p99", _BLACK, "s"))


def write_plots(result: Result, folder: Path) -> list[Path]:
    """One PNG a photo set.

    Returns:
        The files written.
    """
    written = []
    for name, description in result.sets.items():
        closed = [r for r in rows(result, name, "perf_analyzer") if r.load.concurrency]
        opened = [r for r in rows(result, name, "perf_analyzer") if r.load.rate]
        figure, axes = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
        figure.suptitle(f"{name}: {description}")
        _throughput(axes[0], closed, result.median_limit(name).combined)
        _latency(axes[1], closed, opened)
        _stages(axes[2], closed)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        plt.close(figure)
        path = folder / f"{name}.png"
        write_atomic(path, buffer.getvalue())
        written.append(path)
    return written


def _throughput(axis: Any, closed: list[Row], limit: float) -> None:
    positions = range(len(closed))
    spread = [
        [r.throughput - r.low for r in closed],
        [r.high - r.throughput for r in closed],
    ]
    axis.errorbar(positions, [r.throughput for r in closed], yerr=spread, marker="o", capsize=3)
    axis.axhline(limit, color="grey", linestyle="--", label="limit in process")
    axis.set_xticks(positions, [str(r.load.concurrency) for r in closed])
    axis.set(xlabel="requests in flight", ylabel="images per second", title="Throughput")
    axis.set_ylim(0, 1.05 * max([limit, *(r.high for r in closed)]))  # the limit is no frame
    axis.legend(loc="lower right")


def _latency(axis: Any, closed: list[Row], opened: list[Row]) -> None:
    for style, kind, table in (("-", "in flight", closed), (":", "open loop", opened)):
        for percentile, colour, marker in _PERCENTILES:
            if not table:
                continue
            axis.plot(
                [r.throughput for r in table],
                [getattr(r, percentile) for r in table],
                linestyle=style,
                marker=marker,
                markersize=4,
                color=colour,
                label=f"{percentile}, {kind}",
            )
    axis.set(xlabel="images per second", ylabel="ms", title="Latency", yscale="log")
    if closed or opened:
        axis.legend(fontsize="small")


def _stages(axis: Any, closed: list[Row]) -> None:
    below = [0.0] * len(closed)
    positions = range(len(closed))
    for stage, colour in _STAGES.items():
        # Not below zero (transport, by a little): a bar downwards would cover those under it.
        values = [max(0.0, getattr(r, stage)) for r in closed]
        axis.bar(positions, values, bottom=below, label=stage, color=colour)
        below = [b + v for b, v in zip(below, values)]
    axis.set_xticks(positions, [str(r.load.concurrency) for r in closed])
    axis.set(xlabel="requests in flight", ylabel="ms a request", title="Where the time goes")
    if closed:
        axis.margins(y=0.4)  # room for the legend over the bars
        axis.legend(fontsize="small", loc="upper left", ncols=2)
