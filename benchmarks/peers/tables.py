"""Tables and a plot of ``compare.py``'s samples."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from nima_build.bench.open_loop import percentiles


@dataclass(frozen=True)
class Sample:
    """One server at one concurrency in one round; times in milliseconds.

    Attributes:
        server: its name.
        concurrency: requests in flight.
        round: number of the round.
        images_per_second: throughput.
        limit: images per second in process: the mean of right before and right after.
        cpu_ms: CPU of the server's processes, an image.
        p50_ms: median latency; ``p95_ms`` and ``p99_ms`` likewise.
        latencies_ms: of every request, to be pooled over the rounds.
    """

    server: str
    concurrency: int
    round: int
    images_per_second: float
    limit: float
    cpu_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    latencies_ms: tuple[float, ...] = ()


@dataclass(frozen=True)
class OfflineSample:
    """One program without a server in one round, and the product's throughput beside it."""

    program: str
    round: int
    images_per_second: float
    cpu_ms: float
    product_images_per_second: float
    product_cpu_ms: float


def _of(samples: Iterable[Sample], server: str, concurrency: int) -> list[Sample]:
    return [s for s in samples if s.server == server and s.concurrency == concurrency]


def _ratios(samples: Sequence[Sample], own: str, server: str, at: int, key: str) -> list[float]:
    """The rounds' own ratios of a server to the product; of rounds that both ended."""
    base = {s.round: getattr(s, key) for s in _of(samples, own, at)}
    return [getattr(s, key) / base[s.round] for s in _of(samples, server, at) if s.round in base]


def median_limit(samples: Iterable[Sample]) -> float:
    """Images per second in process, over the whole run: what table and plot show."""
    return statistics.median(s.limit for s in samples)


def pooled_p99(samples: Iterable[Sample], server: str, at: int) -> float:
    """99th percentile in ms of the requests of all rounds together."""
    pooled = [ms / 1000 for s in _of(samples, server, at) for ms in s.latencies_ms]
    return percentiles(pooled)[2]


def _grid(
    names: Sequence[str],
    concurrencies: Sequence[int],
    first: str,
    cell: Callable[[str, int], str],
) -> str:
    lines = [f"| {first} | {' | '.join(f'{c} in flight' for c in concurrencies)} |"]
    lines.append("|---" * (len(concurrencies) + 1) + "|")
    lines += [f"| {n} | {' | '.join(cell(n, c) for c in concurrencies)} |" for n in names]
    return "\n".join(lines)


def tables(samples: Sequence[Sample], names: Sequence[str], concurrencies: Sequence[int]) -> str:
    """Throughput, tail and CPU time of every server; the first name is the product."""
    own = names[0]

    def median(server: str, at: int, of: Callable[[Sample], float]) -> float:
        return statistics.median(of(s) for s in _of(samples, server, at))

    def throughput(server: str, at: int) -> str:
        ratio = statistics.median(_ratios(samples, own, server, at, "images_per_second"))
        rate = median(server, at, lambda s: s.images_per_second)
        share = median(server, at, lambda s: s.images_per_second / s.limit)
        return f"**{ratio:.2f}** · {rate:.0f}/s · {share:.0%}"

    def tail(server: str, at: int) -> str:
        ratios = _ratios(samples, own, server, at, "p99_ms")
        spread = median(server, at, lambda s: s.p99_ms / s.p50_ms)
        return (
            f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f}–{max(ratios):.2f}) · "
            f"{pooled_p99(samples, server, at):.0f} · {spread:.2f}"
        )

    def cpu(server: str, at: int) -> str:
        ratio = statistics.median(_ratios(samples, own, server, at, "cpu_ms"))
        return f"**{ratio:.2f}** · {median(server, at, lambda s: s.cpu_ms):.1f} ms"

    def grid(cell: Callable[[str, int], str]) -> str:
        def known(server: str, at: int) -> str:
            # One that failed has no pair with the product from there on.
            return cell(server, at) if _ratios(samples, own, server, at, "cpu_ms") else "–"

        return _grid(names, concurrencies, "server", known)

    return "\n\n".join(
        [
            f"Limit in process: {median_limit(samples):.1f} images/s.",
            f"Throughput: **ratio to {own}** (more is faster) · images/s · of the in-process limit",
            grid(throughput),
            f"Tail: **ratio of the p99 to {own}'s in the same round** (less is better), median "
            "(least to most) · p99 in ms of all rounds together · p99/p50",
            grid(tail),
            f"CPU time an image: **ratio to {own}** (less is cheaper) · ms; what other programs "
            "took does not count",
            grid(cpu),
        ]
    )


def offline_table(samples: Sequence[OfflineSample]) -> str:
    """Programs without a server, against the product in the same round."""
    lines = ["| program | images/s | ratio | CPU ms an image | ratio |", "|---|---|---|---|---|"]
    for name in dict.fromkeys(s.program for s in samples):
        own = [s for s in samples if s.program == name]
        rate = statistics.median(s.images_per_second for s in own)
        ratio = statistics.median(s.images_per_second / s.product_images_per_second for s in own)
        cpu = statistics.median(s.cpu_ms for s in own)
        cost = statistics.median(s.cpu_ms / s.product_cpu_ms for s in own)
        lines.append(f"| {name} | {rate:.1f} | **{ratio:.2f}** | {cpu:.1f} | **{cost:.1f}** |")
    return "\n".join(lines)


def plot(
    samples: Sequence[Sample], names: Sequence[str], concurrencies: Sequence[int], title: str
) -> bytes:
    """PNG: throughput (with the limit) and p99 against requests in flight, CPU time by server."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(17, 4.8), layout="constrained")
    figure.suptitle(title)
    positions = range(len(concurrencies))
    for number, name in enumerate(names):
        style = {
            "color": f"C{number}",
            "marker": "o" if number == 0 else ".",
            "linewidth": 2.6 if number == 0 else 1.3,
            "zorder": 10 - number,
        }
        for axis, key in ((axes[0], "images_per_second"), (axes[1], "p99_ms")):
            values = [
                statistics.median(getattr(s, key) for s in found) if found else float("nan")
                for found in (_of(samples, name, c) for c in concurrencies)
            ]
            axis.plot(positions, values, label=name, **style)
    limit = median_limit(samples)
    line = axes[0].axhline(limit, color="grey", linestyle="--", label="limit in process")
    axes[0].set(ylabel="images per second", title="Throughput")
    axes[0].set_ylim(0, 1.05 * max([limit, *(s.images_per_second for s in samples)]))
    axes[1].set(ylabel="p99 latency, ms", title="Tail", yscale="log")
    costs = [[s.cpu_ms for s in samples if s.server == name] for name in names]
    cpu = [statistics.median(found) if found else 0.0 for found in costs]
    bars = axes[2].barh(range(len(names)), cpu, color=[f"C{k}" for k in range(len(names))])
    axes[2].bar_label(bars, fmt="%.1f", padding=3)
    axes[2].set_yticks(range(len(names)), names)
    axes[2].invert_yaxis()
    axes[2].margins(x=0.12)
    axes[2].set(xlabel="ms an image", title="CPU time (other programs do not count)")
    for axis in axes[:2]:
        axis.set_xticks(positions, [str(c) for c in concurrencies])
        axis.set_xlabel("requests in flight")
    axes[0].legend(handles=[line], loc="lower right")  # the servers' colours: third panel
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()
