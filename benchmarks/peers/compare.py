"""Images per second and tails of this server and of what people would use instead.

    make bench-peers        or        python benchmarks/peers/compare.py --photos FOLDER

All servers run at once and are loaded in turn, a second or two each, for several rounds, with the
limit of the machine in between: the tables give ratios within a round. Every server answers on
loopback over HTTP to the same load generator, with the same network, and with the same decoder
except where the name says otherwise. Programs that have no server (Keras, IQA-PyTorch) score the
same photos from files, in turn with the product.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import loopback
import offline
import servers
from http_load import closed_loop
from tables import OfflineSample, Sample, offline_table, plot, tables

from nima_build.bench import BenchError
from nima_build.bench.limit import LimitMeter
from nima_build.bench.machine import describe_machine, one_line
from nima_build.bench.open_loop import percentiles
from nima_build.bench.photos import load_photos, split_by_size
from nima_build.repository import GRAPHS, default_repository, load_metadata
from nima_client._files import write_atomic

PEERS = {
    "fastapi": servers.fastapi,
    "fastapi-pillow": lambda setting: servers.fastapi(setting, pillow=True),
    "litserve": servers.litserve,
    "bentoml": servers.bentoml,
    "ray": servers.ray_serve,
    "triton-tutorial": servers.triton_tutorial,
}
MEAN_TOLERANCE = 0.05  # a full decode instead of the reduced one, rounding
OFFLINE_CONCURRENCY = 8


def check_same_work(targets: list[servers.Target]) -> None:
    """Every server must score the first photos alike, or its speed means nothing."""
    for index in range(min(3, len(targets[0].requests))):
        wanted = targets[0].mean(index)
        for target in targets[1:]:
            got = target.mean(index)
            if abs(got - wanted) > MEAN_TOLERANCE:
                raise SystemExit(f"{target.name} scores photo {index} {got}, not {wanted}")


def load(target: servers.Target, concurrency: int, seconds: float) -> dict[str, float]:
    """Throughput, CPU time and latencies of one server."""
    before = target.cpu_seconds()
    rate, latencies, answered = closed_loop(target.address, target.requests, concurrency, seconds)
    cpu_ms = (target.cpu_seconds() - before) / answered * 1000
    p50, p95, p99 = percentiles(latencies)
    return {
        "images_per_second": rate,
        "cpu_ms": cpu_ms,
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
    }


def measure(
    targets: list[servers.Target],
    meter: LimitMeter,
    concurrencies: Sequence[int],
    seconds: float,
    rounds: int,
) -> list[Sample]:
    """Every server at every concurrency, in turn; the order rotates with the rounds."""
    samples: list[Sample] = []
    for number in range(rounds):
        for concurrency in concurrencies:
            limit = meter.rate("combined", seconds / 2)
            shift = number % len(targets)
            for target in targets[shift:] + targets[:shift]:
                found = load(target, concurrency, seconds)
                samples.append(Sample(target.name, concurrency, round=number, limit=limit, **found))
                print(
                    f"round {number + 1}, {concurrency} in flight, {target.name}: "
                    f"{found['images_per_second']:.1f} images/s "
                    f"({found['images_per_second'] / limit:.0%} of the limit), "
                    f"p50 {found['p50_ms']:.1f} p99 {found['p99_ms']:.1f} ms, "
                    f"CPU {found['cpu_ms']:.1f} ms an image",
                    flush=True,
                )
    return samples


def measure_offline(
    product: servers.Target, programs: list[offline.Program], seconds: float, rounds: int
) -> list[OfflineSample]:
    """Every program without a server, in turn with the product."""
    samples: list[OfflineSample] = []
    for number in range(rounds):
        for program in programs:
            own = load(product, OFFLINE_CONCURRENCY, seconds)
            rate, cpu_ms = program.work(seconds)
            samples.append(
                OfflineSample(
                    program.name, number, rate, cpu_ms, own["images_per_second"], own["cpu_ms"]
                )
            )
            print(
                f"round {number + 1}, {program.name}: {rate:.1f} images/s, CPU {cpu_ms:.1f} ms an "
                f"image; the product {own['images_per_second']:.1f} and {own['cpu_ms']:.1f}",
                flush=True,
            )
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"of {', '.join(PEERS)}")
    parser.add_argument(
        "--offline", default=",".join(offline.NAMES), help=f"of {', '.join(offline.NAMES)}"
    )
    parser.add_argument("--python", type=Path, default=Path(".venv-peers/bin/python"))
    parser.add_argument("--concurrency", default="1,2,4,8,16,32,64")
    parser.add_argument("--seconds", type=float, default=1.2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", default="small", choices=["small", "large"])
    parser.add_argument("--precision", default="fp32", choices=list(GRAPHS))
    parser.add_argument("--model-repository", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path("out/bench-peers"))
    options = parser.parse_args()
    peers = [name for name in options.peers.split(",") if name]
    programs = [name for name in options.offline.split(",") if name]
    for name, known in [(n, PEERS) for n in peers] + [(n, offline.NAMES) for n in programs]:
        if name not in known:
            raise SystemExit(f"no peer {name!r}: there are {', '.join(known)}")
    if not options.python.is_file():
        raise SystemExit(f"no {options.python}: run `make bench-peers`, which installs the peers")
    if "ray" in peers and not loopback.enter():
        print("Ray Serve is left out: it binds beyond loopback, and no network namespace can be "
              "made here (Debian: util-linux, iproute2)")  # fmt: skip
        peers.remove("ray")
    # Ended from outside (timeout, say), the servers must end, too: they have sessions of their own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    try:
        sets = {s.name: s for s in split_by_size(load_photos([options.photos]))}
        concurrencies = [int(c) for c in options.concurrency.split(",")]
    except (BenchError, ValueError) as error:
        raise SystemExit(str(error)) from None
    if options.set not in sets:
        raise SystemExit(f"{options.photos} has no {options.set} photos")
    chosen = sets[options.set]
    repository = (options.model_repository or default_repository()).resolve()
    metadata = load_metadata(repository)
    machine = describe_machine()
    with tempfile.TemporaryDirectory(prefix="nima-peers-") as folder:
        setting = servers.Setting(
            photos=[photo.data for photo in chosen.photos],
            repository=repository,
            metadata=metadata,
            workers=len(os.sched_getaffinity(0)),
            python=options.python.absolute(),
            folder=Path(folder),
            precision=options.precision,
        )
        with contextlib.ExitStack() as up:
            targets = [up.enter_context(servers.product(setting))]
            for name in peers:
                print(f"starting {name} …", flush=True)
                targets.append(up.enter_context(PEERS[name](setting)))
            check_same_work(targets)
            meter = up.enter_context(LimitMeter(setting.photos, metadata.spec, setting.onnx))
            samples = measure(targets, meter, concurrencies, options.seconds, options.rounds)
        alone: list[OfflineSample] = []
        with contextlib.ExitStack() as up:
            if programs:
                product = up.enter_context(servers.product(setting))
                ready = [up.enter_context(offline.program(n, setting)) for n in programs]
                alone = measure_offline(product, ready, options.seconds, options.rounds)
    names = [target.name for target in targets]
    text = (
        f"# Peers, {chosen.name} photos: {chosen.describe()}\n\n{one_line(machine)}. "
        f"Network: {metadata.name} ({metadata.checkpoint_sha256[:12]}), {options.precision}.\n\n"
        f"{tables(samples, names, concurrencies)}\n\n"
        f"Ratios are medians of {options.rounds} rounds' own ratios, the rest medians. "
        f"{options.seconds:g} s a measurement, all servers up, loaded in turn over HTTP by one "
        "generator on the same cores; the limit is measured in the same round.\n"
    )
    if alone:
        text += (
            f"\n## Without a server\n\n{offline_table(alone)}\n\nRatios to {names[0]} with "
            f"{OFFLINE_CONCURRENCY} in flight, measured right before.\n"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": machine,
        "network": metadata.name,
        "precision": options.precision,
        "samples": [asdict(s) for s in samples],
        "offline": [asdict(s) for s in alone],
    }
    title = f"{chosen.name}: {chosen.describe()}"
    for suffix, content in (
        ("json", (json.dumps(document, indent=1) + "\n").encode()),
        ("md", text.encode()),
        ("png", plot(samples, names, concurrencies, title)),
    ):
        write_atomic(options.out / f"peers-{chosen.name}.{suffix}", content)
    print(text)


if __name__ == "__main__":
    main()
