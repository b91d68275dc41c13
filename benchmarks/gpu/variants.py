"""What the placement of the steps on a GPU brings: every variant up at once, loaded in turn.

    python benchmarks/gpu/variants.py PHOTOS --out out/gpu
    python benchmarks/gpu/variants.py PHOTOS --variants shipped decoders=2,batch=128

A variant names what differs from the shipped profile: ``decoders`` and ``networks`` (instances of
each step), ``batch`` (how many images Triton merges for a step), ``host_below`` (requests of fewer
images hand on their pixels through the host). Started beside a daemon of NVIDIA MPS
(``CUDA_MPS_PIPE_DIRECTORY``), all of them share one context of the GPU: that is another run, since
without one they have none, unlike `nima serve`. The photos are in AVA's size (see serve.py); idle
servers cost a GPU next to nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nima_build.bench.arguments import count, positive, told_by
from nima_build.bench.machine import describe_machine
from nima_build.bench.perf_analyzer import Load, find_perf_analyzer, run_perf_analyzer
from nima_build.bench.photos import load_photos, write_perf_inputs
from nima_build.bench.rounds import told_in_a_line
from nima_build.bench.stages import StageMeter
from nima_build.bench.variant import copy_repository, edit_config
from nima_build.gpu import find_gpus
from nima_build.repository import default_repository
from nima_build.server import EmbeddedServer, ServerOptions
from nima_client._files import write_atomic
from nima_client._signals import stoppable
from nima_client.contract import NETWORK_MODEL, PREPROCESS_MODEL

PROFILE = "embedded-gpu"
SHIPPED = "shipped"
VARIANTS = (
    SHIPPED, "decoders=4", "decoders=8", "networks=1", "networks=3", "host_below=64",
    "decoders=6,batch=128",
)  # fmt: skip


def _instances(model: str) -> Callable[[Path, int], None]:
    def change(repository: Path, count: int) -> None:
        with edit_config(repository, model, PROFILE) as config:
            config.instance_group[0].count = count

    return change


def _batch(repository: Path, size: int) -> None:
    for model in (PREPROCESS_MODEL, NETWORK_MODEL):
        with edit_config(repository, model, PROFILE) as config:
            config.max_batch_size = size
            sizes = {*config.dynamic_batching.preferred_batch_size, size}
            config.dynamic_batching.preferred_batch_size[:] = sorted(n for n in sizes if n <= size)


def _host_below(repository: Path, count: int) -> None:
    for model in (PREPROCESS_MODEL, NETWORK_MODEL):
        with edit_config(repository, model, PROFILE) as config:
            config.parameters["host_below"].string_value = str(count)


CHANGES: Mapping[str, Callable[[Path, int], None]] = {
    "decoders": _instances(PREPROCESS_MODEL),
    "networks": _instances(NETWORK_MODEL),
    "batch": _batch,
    "host_below": _host_below,
}


def parse(variant: str) -> dict[str, int]:
    """``"decoders=2,batch=128"`` as a mapping; empty for ``shipped``.

    Raises:
        argparse.ArgumentTypeError: it names something else, or no number of at least 1.
    """
    changes: dict[str, int] = {}
    for part in variant.split(",") if variant != SHIPPED else ():
        name, _, value = part.partition("=")
        if name not in CHANGES or not value.isdecimal() or int(value) < 1:
            raise argparse.ArgumentTypeError(
                f"{variant!r}: give {SHIPPED}, or NAME=COUNT of {', '.join(CHANGES)}, with commas"
            )
        changes[name] = int(value)
    return changes


def apply(repository: Path, variant: str) -> None:
    """Change the profile of a copy of the model repository."""
    for name, value in parse(variant).items():
        CHANGES[name](repository, value)


def rounds_over(report: dict[str, Any]) -> int:
    """How many rounds every variant has ended, at every load."""
    return min(len(rounds) for found in report["variants"].values() for rounds in found.values())


def to_markdown(report: dict[str, Any]) -> str:
    """A row a variant: medians of each load, and of the rounds' own ratios to the first variant;
    of the rounds that were over, one at least.
    """
    loads = list(next(iter(report["variants"].values())))
    over = rounds_over(report)
    lines = [f"**Not started** {name}: {why}\n" for name, why in report["failed"].items()]
    if over < report["rounds"]:
        lines.append(f"**Incomplete**: {over} of {report['rounds']} rounds were over.\n")
    lines += [
        f"{report['gpu']['name']}, driver {report['gpu']['driver']}; "
        f"{'with' if report['mps'] else 'without'} NVIDIA MPS. By images a request x requests in "
        f"flight: images/s (ratio to {next(iter(report['variants']))}) · p50 / p99 ms.",
        "",
        "| variant | " + " | ".join(loads) + " |",
        "|---" * (len(loads) + 1) + "|",
    ]
    first = next(iter(report["variants"].values()))
    for name, found in report["variants"].items():
        cells = []
        for load in loads:
            rounds, base = found[load][:over], first[load][:over]
            throughput, p50, p99 = (
                statistics.median(one[key] for one in rounds)
                for key in ("throughput", "p50", "p99")
            )
            pairs = zip(rounds, base, strict=True)
            ratio = statistics.median(a["throughput"] / b["throughput"] for a, b in pairs)
            cells.append(f"{throughput:,.0f} ({ratio:.2f}) · {p50:.1f} / {p99:.1f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def measure(
    urls: Mapping[str, str], perf_analyzer: Path, inputs: Path, loads: list[str], rounds: int,
    seconds: float, save: Callable[[str, str, dict[str, Any]], None],
) -> None:  # fmt: skip
    """Load each server in turn, round after round; the order rotates with the rounds."""
    with contextlib.ExitStack() as stack:
        meters = {
            name: stack.enter_context(contextlib.closing(StageMeter(url)))
            for name, url in urls.items()
        }
        names = list(urls)
        for number in range(rounds):
            shift = number % len(names)
            for text in loads:
                load = Load.parse(text)
                for name in names[shift:] + names[:shift]:
                    meters[name].lap()
                    found = run_perf_analyzer(perf_analyzer, urls[name], inputs, load, seconds)
                    stages = meters[name].lap()
                    row = {**asdict(found), "stages": asdict(stages) if stages else None}
                    print(name, text, row, flush=True)
                    save(name, text, row)


def main() -> None:
    """Measure, write variants.json and variants.md."""
    from serve import ava_sized

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, nargs="+", help="photos and folders of photos")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--loads", nargs="+", default=["32x4", "32x16"])
    parser.add_argument("--seconds", type=positive, default=1.5)
    parser.add_argument("--rounds", type=count, default=2)
    parser.add_argument("--start-timeout", type=positive, default=120.0)
    options = parser.parse_args()
    try:
        for variant in options.variants:
            parse(variant)
            if options.variants.count(variant) > 1:
                raise ValueError(f"{variant} is named twice")
        for load in options.loads:
            Load.parse(load)
    except (argparse.ArgumentTypeError, ValueError) as error:
        parser.error(str(error))
    gpus = find_gpus()
    if not gpus:
        parser.error("there is no NVIDIA GPU here (nvidia-smi finds none)")
    with told_by(parser):
        perf_analyzer = find_perf_analyzer()
        photos = [ava_sized(photo) for photo in load_photos(options.photos)]
    variants: dict[str, dict[str, list[Any]]] = {
        name: {load: [] for load in options.loads} for name in options.variants
    }
    report: dict[str, Any] = {
        "gpu": asdict(gpus[0]),
        "machine": describe_machine(),
        "mps": "CUDA_MPS_PIPE_DIRECTORY" in os.environ,
        "rounds": options.rounds,
        "variants": variants,
        "failed": {},
    }
    options.out.mkdir(parents=True, exist_ok=True)

    def save(name: str, load: str, row: dict[str, Any]) -> None:
        variants[name][load].append(row)
        write_atomic(options.out / "variants.json", (json.dumps(report, indent=2) + "\n").encode())

    with tempfile.TemporaryDirectory(prefix="nima-gpu-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        inputs = folder / "inputs.json"
        write_perf_inputs(photos, inputs)

        def start(variant: str) -> EmbeddedServer:
            copy = copy_repository(default_repository(), folder / variant)
            apply(copy, variant)
            server = EmbeddedServer(
                ServerOptions(
                    device="cuda",
                    mps=False,
                    model_repository=copy,
                    start_timeout=options.start_timeout,
                    stop_timeout=1.0,
                    log_file=options.out / f"{variant}.log",
                )
            )
            server.start()
            return server

        # A server ends with the thread that started it: the pool closes after the servers.
        pool = stack.enter_context(ThreadPoolExecutor(len(options.variants)))
        starts = {variant: pool.submit(start, variant) for variant in options.variants}
        urls = {}
        for variant, future in starts.items():
            try:
                server = future.result()
            except Exception as error:  # the others are still worth their figures
                report["failed"][variant] = (str(error).splitlines() or [repr(error)])[0]
                print(variant, report["failed"][variant], flush=True)
                del variants[variant]
                continue
            stack.callback(server.stop)
            urls[variant] = server.grpc_url
        if not urls:
            raise SystemExit("no variant could be started")
        try:
            measure(
                urls, perf_analyzer, inputs, options.loads, options.rounds, options.seconds, save
            )
        finally:
            if rounds_over(report):
                table = to_markdown(report)
                write_atomic(options.out / "variants.md", table.encode())
                print(table, flush=True)
    if report["failed"]:
        raise SystemExit(f"not started: {', '.join(report['failed'])}")


if __name__ == "__main__":
    with stoppable("gpu/variants.py"), told_in_a_line("gpu/variants.py"):
        main()
