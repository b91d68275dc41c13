"""Images per second and tails of this server and of what people would use instead.

    make bench-peers        or        python benchmarks/peers/compare.py --photos FOLDER

All servers run at once and are loaded in turn, a few seconds each, for several rounds, with the
limit of the machine in between: the table gives ratios within a round. Every server answers on
loopback over HTTP to the same load generator, with the same network, and with the same decoder
except where the name says otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
from pathlib import Path

import servers
from http_load import closed_loop

from nima_build.bench.limit import LimitMeter
from nima_build.bench.machine import describe_machine, one_line
from nima_build.bench.open_loop import percentiles
from nima_build.bench.photos import load_photos, split_by_size
from nima_build.repository import default_repository, load_metadata
from nima_client._files import write_atomic

PEERS = {
    "fastapi": servers.fastapi,
    "fastapi-pillow": lambda setting: servers.fastapi(setting, pillow=True),
    "litserve": servers.litserve,
    "bentoml": servers.bentoml,
    "triton-tutorial": servers.triton_tutorial,
}
MEAN_TOLERANCE = 0.05  # a full decode instead of the reduced one, rounding


def check_same_work(targets: list[servers.Target]) -> None:
    """Every server must score the first photos alike, or its speed means nothing."""
    for index in range(min(3, len(targets[0].requests))):
        wanted = targets[0].mean(index)
        for target in targets[1:]:
            got = target.mean(index)
            if abs(got - wanted) > MEAN_TOLERANCE:
                raise SystemExit(f"{target.name} scores photo {index} {got}, not {wanted}")


def measure(
    targets: list[servers.Target],
    meter: LimitMeter,
    concurrencies: list[int],
    seconds: float,
    rounds: int,
) -> list[dict[str, object]]:
    """Every server at every concurrency, in turn; the order rotates with the rounds."""
    samples: list[dict[str, object]] = []
    for number in range(rounds):
        for concurrency in concurrencies:
            limit = meter.rate("combined", seconds / 2)
            shift = number % len(targets)
            for target in targets[shift:] + targets[:shift]:
                before = target.cpu_seconds()
                rate, latencies, answered = closed_loop(
                    target.address, target.requests, concurrency, seconds
                )
                cpu_ms = (target.cpu_seconds() - before) / answered * 1000
                p50, p95, p99 = percentiles(latencies)
                samples.append(
                    {
                        "server": target.name,
                        "concurrency": concurrency,
                        "round": number,
                        "images_per_second": rate,
                        "limit": limit,
                        "cpu_ms": cpu_ms,
                        "p50_ms": p50,
                        "p95_ms": p95,
                        "p99_ms": p99,
                    }
                )
                print(
                    f"round {number + 1}, {concurrency} in flight, {target.name}: {rate:.1f} "
                    f"images/s ({rate / limit:.0%} of the limit), p50 {p50:.1f} p99 {p99:.1f} ms, "
                    f"CPU {cpu_ms:.1f} ms an image",
                    flush=True,
                )
    return samples


def table(samples: list[dict[str, object]], names: list[str], concurrencies: list[int]) -> str:
    """Throughput as a ratio to the product (medians of the rounds' ratios), share of limit, p99."""

    def of(name: str, concurrency: int, key: str) -> list[float]:
        return [
            float(str(s[key]))
            for s in samples
            if s["server"] == name and s["concurrency"] == concurrency
        ]

    head = "".join(f"| {c} in flight " for c in concurrencies)
    lines = [f"| server {head}|", "|---" * (len(concurrencies) + 1) + "|"]
    for name in names:
        cells = []
        for concurrency in concurrencies:
            own = of(names[0], concurrency, "images_per_second")
            rates = of(name, concurrency, "images_per_second")
            ratio = statistics.median(b / a for a, b in zip(own, rates))
            share = statistics.median(
                r / limit for r, limit in zip(rates, of(name, concurrency, "limit"))
            )
            p50 = statistics.median(of(name, concurrency, "p50_ms"))
            p99 = statistics.median(of(name, concurrency, "p99_ms"))
            own_cpu = of(names[0], concurrency, "cpu_ms")
            cpu = statistics.median(b / a for a, b in zip(own_cpu, of(name, concurrency, "cpu_ms")))
            cells.append(
                f"**{ratio:.2f}** · {statistics.median(rates):.1f}/s · {share:.0%} · "
                f"p50 {p50:.0f} p99 {p99:.0f} ms · CPU {cpu:.2f}"
            )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"of {', '.join(PEERS)}")
    parser.add_argument("--python", type=Path, default=Path(".venv-peers/bin/python"))
    parser.add_argument("--concurrency", default="1,8,32")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", default="small", choices=["small", "large"])
    parser.add_argument("--model-repository", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path("out/bench-peers"))
    options = parser.parse_args()
    # Ended from outside (timeout, say), the servers must end, too: they have sessions of their own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    sets = {s.name: s for s in split_by_size(load_photos([options.photos]))}
    if options.set not in sets:
        raise SystemExit(f"{options.photos} has no {options.set} photos")
    chosen = sets[options.set]
    concurrencies = [int(c) for c in options.concurrency.split(",")]
    repository = (options.model_repository or default_repository()).resolve()
    metadata = load_metadata(repository)
    machine = describe_machine()
    with tempfile.TemporaryDirectory(prefix="nima-peers-") as folder, contextlib.ExitStack() as up:
        setting = servers.Setting(
            photos=[photo.data for photo in chosen.photos],
            repository=repository,
            metadata=metadata,
            workers=len(os.sched_getaffinity(0)),
            python=options.python.absolute(),
            folder=Path(folder),
        )
        targets = [up.enter_context(servers.product(setting))]
        for name in options.peers.split(","):
            print(f"starting {name} …", flush=True)
            targets.append(up.enter_context(PEERS[name](setting)))
        check_same_work(targets)
        meter = up.enter_context(LimitMeter(setting.photos, metadata.spec, setting.onnx))
        samples = measure(targets, meter, concurrencies, options.seconds, options.rounds)
    names = [target.name for target in targets]
    text = (
        f"# Peers, {chosen.name} photos: {chosen.describe()}\n\n{one_line(machine)}. "
        f"Network: {metadata.name} ({metadata.checkpoint_sha256[:12]}).\n\n"
        f"{table(samples, names, concurrencies)}\n\n"
        "Bold: throughput relative to NIMA on Triton, median of the rounds' ratios; then images/s, "
        "share of the in-process limit, latency, and CPU time an image relative to NIMA on Triton "
        f"(what other programs took does not count). {options.rounds} rounds of "
        f"{options.seconds:g} s each, all servers up, loaded in turn over HTTP by the same "
        "generator on the same cores.\n"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    document = {"machine": machine, "network": metadata.name, "samples": samples}
    write_atomic(
        options.out / f"peers-{chosen.name}.json", (json.dumps(document, indent=1) + "\n").encode()
    )
    write_atomic(options.out / f"peers-{chosen.name}.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
