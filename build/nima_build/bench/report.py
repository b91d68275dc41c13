"""CSV, JSON, Markdown and plots of a run."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from nima_build.bench.machine import one_line
from nima_build.bench.perf_analyzer import Load, Measured
from nima_build.bench.photos import SETS
from nima_build.bench.session import Result, Sample
from nima_build.bench.stages import Stages
from nima_client._files import write_atomic
from nima_client.library.text import counted

_COLUMNS = (
    *("photos", "tool", "concurrency", "rate", "request_size", "repeat"),
    *("images_per_second", "limit"),
    *("share_of_limit", "p50_ms", "p95_ms", "p99_ms", "mean_ms"),
    *("queue_ms", "decode_ms", "network_ms", "server_ms", "failed"),
    *("cpu_ms_in_process", "cpu_ms_server", "cpu_ms_generator", "cpu_share", "cpu_server_share"),
)


@dataclass(frozen=True)
class Row:
    """Medians of one load over the rounds; times in milliseconds.

    Attributes:
        load: the load.
        throughput: images per second; ``low`` and ``high`` are the least and the most.
        share: of the machine's limit, the median of the rounds' own ratios.
        tail: p99/p50, the median of the rounds' own ratios.
        transport: mean latency of a client beyond the server's own mean, likewise.
        cpu: CPU milliseconds an image (in process, server, generator) and the share of the limit
            they make possible; None where they were not measured.
    """

    load: Load
    throughput: float
    low: float
    high: float
    share: float
    p50: float
    p95: float
    p99: float
    tail: float
    queue: float
    decode: float
    network: float
    transport: float
    failed: int
    cpu: dict[str, float] | None


def rows(result: Result, photos: str, tool: str) -> list[Row]:
    """One row a load, in the order in which they ran."""
    found: dict[Load, list[Sample]] = {}
    for sample in result.samples:
        if sample.photos == photos and sample.tool == tool:
            found.setdefault(sample.load, []).append(sample)
    return [_row(load, samples) for load, samples in found.items()]


def _row(load: Load, samples: list[Sample]) -> Row:
    def median(of: Callable[[Sample], float]) -> float:
        return statistics.median(of(sample) for sample in samples)

    def stage(of: Callable[[Stages, Measured], float]) -> float:
        values = [of(s.stages, s.measured) for s in samples if s.stages is not None]
        return statistics.median(values) if values else float("nan")

    rates = [sample.measured.throughput for sample in samples]
    times = [s.cpu.to_dict() for s in samples if s.cpu is not None]
    return Row(
        load=load,
        throughput=statistics.median(rates),
        low=min(rates),
        high=max(rates),
        share=median(lambda s: s.share),
        p50=median(lambda s: s.measured.p50),
        p95=median(lambda s: s.measured.p95),
        p99=median(lambda s: s.measured.p99),
        tail=median(lambda s: s.measured.p99 / s.measured.p50),
        queue=stage(lambda stages, _: stages.queue),
        decode=stage(lambda stages, _: stages.decode),
        network=stage(lambda stages, _: stages.network),
        transport=stage(lambda stages, measured: stages.transport(measured.mean)),
        failed=sum(sample.failed for sample in samples),
        cpu={key: statistics.median(t[key] for t in times) for key in times[0]} if times else None,
    )


def to_csv(result: Result) -> str:
    """Every single measurement, a line each."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for s in result.samples:
        stages = s.stages
        inside = (
            [stages.queue, stages.decode, stages.network, stages.server] if stages else [""] * 4
        )
        m = s.measured
        figures = [m.throughput, s.limit, s.share, m.p50, m.p95, m.p99, m.mean]
        shown = [f"{v:.4g}" if isinstance(v, float) else v for v in [*figures, *inside]]
        writer.writerow(
            [s.photos, s.tool, s.load.concurrency, s.load.rate, s.load.batch, s.repeat]
            + [*shown, s.failed]
            + ([f"{v:.4g}" for v in s.cpu.to_dict().values()] if s.cpu else [""] * 5)
        )
    return buffer.getvalue()


def to_markdown(result: Result) -> str:
    """The tables, each under the limit of the machine."""
    text = [f"# Load test\n\n{one_line(result.machine)}. Network: {result.network}.\n"]
    if result.failure:
        text.append(f"**Incomplete**: ended early by a failure ({result.failure}).\n")
    for name, description in result.sets.items():
        limit = result.median_limit(name)
        text.append(
            f"## {name}: {description}\n\n"
            f"Limit in process, all cores: **{limit.combined:.1f} images/s** "
            f"(decode only {limit.decode:.1f}, network only {limit.network:.1f}); "
            f"one image alone {limit.alone_ms:.1f} ms.\n"
        )
        for tool, title in (
            ("perf_analyzer", "perf_analyzer over gRPC"),
            ("sdk", "Open loop through nima_client, latency from the time a request was due"),
        ):
            table = rows(result, name, tool)
            if table:
                text.append(f"{title}:\n\n{_table(table)}\n")
            if any(row.cpu for row in table):
                text.append(f"CPU time an image:\n\n{_cpu_table(table)}\n")
    repeats = 1 + max((s.repeat for s in result.samples), default=0)
    text.append(
        f"Medians of {'up to ' if result.failure else ''}{counted(repeats, 'round')} (least to "
        "most in brackets). The limit is measured right before and after every measurement; a "
        "share is the median of the ratios to both's mean, p99/p50 that of the rounds' own. Queue, "
        "decode and network are means inside the server (copies included), transport is the mean a "
        "client sees less the server's own. CPU time does not count what other programs took, so "
        "it holds on a shared machine, too. Its first ratio is the share of the limit that server "
        "and generator can reach on the same busy cores, its last the server's with the generator "
        "elsewhere. Figures of different runs must not be compared.\n"
    )
    return "\n".join(text)


def _table(table: Iterable[Row]) -> str:
    lines = [
        "| load | images/s | of the limit | p50 | p95 | p99 ms | p99/p50 "
        "| queue | decode | network | transport ms | failed |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in table:
        lines.append(
            f"| {r.load.label} | {r.throughput:.1f} ({r.low:.1f}–{r.high:.1f}) | {r.share:.0%} "
            f"| {r.p50:.1f} | {r.p95:.1f} | {r.p99:.1f} | {r.tail:.2f} "
            f"| {r.queue:.1f} | {r.decode:.1f} | {r.network:.1f} | {r.transport:.1f} "
            f"| {r.failed} |"
        )
    return "\n".join(lines)


def _cpu_table(table: Iterable[Row]) -> str:
    lines = [
        "| load | in process | server | load generator ms | limit / (server + generator) "
        "| limit / server |",
        "|---|---|---|---|---|---|",
    ]
    for r in table:
        if r.cpu is not None:
            lines.append(
                f"| {r.load.label} | {r.cpu['in_process']:.2f} | {r.cpu['server']:.2f} "
                f"| {r.cpu['generator']:.2f} | {r.cpu['share']:.0%} "
                f"| {r.cpu['server_share']:.0%} |"
            )
    return "\n".join(lines)


def write_report(result: Result, folder: Path) -> list[Path]:
    """Write ``results.json``, ``results.csv``, ``summary.md`` and the plots, each atomically.

    Returns:
        The files written. Without matplotlib the plots are left out. A plot of an earlier run that
        this one has no successor for is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "results.json": json.dumps(result.to_dict(), indent=1) + "\n",
        "results.csv": to_csv(result),
        "summary.md": to_markdown(result),
    }
    written = []
    for name, content in contents.items():
        write_atomic(folder / name, content.encode())
        written.append(folder / name)
    try:
        from nima_build.bench.plots import write_plots
    except ImportError:
        plots = []
    else:
        plots = write_plots(result, folder)
    # An earlier run's plot beside these tables would be taken for theirs.
    for name in SETS:
        if (old := folder / f"{name}.png") not in plots:
            old.unlink(missing_ok=True)
    return written + plots
