"""A server on a GPU end to end, beside the limit of its decoder.

    python benchmarks/gpu/serve.py PHOTOS --out out/gpu

Photos are brought to 500 x 375 (or 375 x 500) JPEG of quality 90, the size of AVA's. Measured
before and after the server: files decoded by nvImageCodec alone, and the whole preprocessing, by
one and by several processes, which share the GPU as those of the server do; in rounds between,
``nima serve --device cuda`` under perf_analyzer, on the same machine. ``--url`` measures a server
that runs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import queue
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from nima_build.bench import BenchError
from nima_build.bench.arguments import count, load, positive, told_by
from nima_build.bench.machine import describe_machine
from nima_build.bench.perf_analyzer import find_perf_analyzer, run_perf_analyzer
from nima_build.bench.photos import Photo, load_photos, write_perf_inputs
from nima_build.bench.rounds import told_in_a_line
from nima_build.bench.stages import StageMeter
from nima_build.gpu import find_gpus
from nima_build.gpu_check.pixels import model_file
from nima_build.parity import compare, onnx_scorer
from nima_build.repository import ONNX_NAME, default_repository, load_metadata
from nima_build.server import EmbeddedServer, ServerOptions
from nima_build.server._mps import Mps
from nima_client import NimaClient
from nima_client._files import write_atomic
from nima_client._signals import stoppable
from nima_client.contract import MAX_BATCH_SIZE, NETWORK_MODEL
from nima_client.preprocess import DEFAULT_LIMITS, PreprocessSpec, preprocess

PROCESSES = (1, 2, 4, 6)
BATCH = 128
"""Images at once where the limit is measured: enough to keep the decoder of an H200 busy."""
STAGES = ("decode", "preprocess")


def ava_sized(photo: Photo) -> Photo:
    """The photo as AVA would have it: 500 x 375 or 375 x 500, JPEG of quality 90."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(photo.data))).convert("RGB")
    size = (500, 375) if image.width >= image.height else (375, 500)
    file = io.BytesIO()
    ImageOps.fit(image, size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=90)
    return Photo(photo.name, file.getvalue(), *size)


def _work(
    stage: str, files: list[bytes], spec: PreprocessSpec, seconds: float, start: Any, done: Any
) -> None:
    """In a process of its own: batches of one stage until the time is over."""
    module = model_file("gpu_pixels.py")
    if stage == "decode":
        decoder = module.JpegDecoder(0, len(files))
        operations = module.CvCuda(spec, 0)

        def run() -> object:
            images = decoder.decode(files, operations.stream_handle)
            operations.wait()
            return images
    else:
        failures: list[Exception] = []
        pixels = module.on_gpu(spec, DEFAULT_LIMITS, 0, failures.append, batch=len(files))

        def run() -> object:
            found = pixels([files])
            if failures:
                raise failures[0]
            return found

    for _ in range(5):
        run()
    start.wait(60)
    count, begin = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begin) < seconds:
        run()
        count += len(files)
    done.put(count / elapsed)


def limit(
    stage: str, processes: int, files: list[bytes], spec: PreprocessSpec, seconds: float
) -> float:
    """Images per second of one stage, of so many processes together.

    Raises:
        BenchError: one of them failed.
    """
    context = multiprocessing.get_context("spawn")
    start, done = context.Barrier(processes), context.Queue()
    batch = [files[n % len(files)] for n in range(BATCH)]
    workers = [
        context.Process(target=_work, args=(stage, batch, spec, seconds, start, done), daemon=True)
        for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    rates: list[float] = []
    latest = time.monotonic() + 120 + seconds
    while len(rates) < processes:
        try:
            rates.append(done.get(timeout=1))
        except queue.Empty:
            if any(worker.exitcode for worker in workers) or time.monotonic() > latest:
                raise BenchError(
                    f"a process that measures the limit of {stage} failed or does not answer: "
                    "its own words are above; --no-limits leaves the limits out"
                ) from None
    for worker in workers:
        worker.join(10)
    return round(sum(rates), 1)


@contextlib.contextmanager
def sharing(options: ServerOptions) -> Iterator[None]:
    """Processes that are started meanwhile share the GPU as those of the server will."""
    mps, before = Mps(options.mps), dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="nima-mps-") as folder:
        try:
            os.environ.update(mps.launch(Path(folder)))
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)
            mps.end()


@contextlib.contextmanager
def serving(url: str, options: ServerOptions) -> Iterator[tuple[str, dict[str, object]]]:
    """The address of the server that is measured, and what is known of it."""
    if url:
        yield url, {}
        return
    began = time.monotonic()
    with EmbeddedServer(options) as server:
        yield server.grpc_url, {"mps": server.mps.note, "start": time.monotonic() - began}


def judge(url: str, photos: list[Photo], spec: PreprocessSpec) -> dict[str, Any]:
    """Scores of the server against the reference decoder and the FP32 graph on the CPU."""
    files = [photo.data for photo in photos]
    pixels = np.stack([preprocess(data, spec) for data in files])
    graph = default_repository() / NETWORK_MODEL / "1" / ONNX_NAME
    # As many a request as the load has: fewer would pass through the host.
    with NimaClient(url, request_size=MAX_BATCH_SIZE) as client:
        scores = client.score(files)
    actual = np.array([score.distribution for score in scores])
    names = [photo.name for photo in photos]
    return asdict(compare("triton-gpu", names, onnx_scorer(graph)(pixels), actual))


def to_markdown(report: dict[str, Any]) -> str:
    """Limits where they were measured, then one row a load: medians over the rounds."""
    gpu, machine = report["gpu"], report["machine"]
    limits = {key: statistics.median(found) for key, found in report["limits"].items() if found}
    lines = [] if report.get("complete", True) else ["**Incomplete**: the run ended early.", ""]
    lines += [
        f"{gpu['name']}, driver {gpu['driver']}; {machine['cores']} cores of {machine['cpu']}, "
        f"which the load generator shares. {report['photos']}. Scores: mean rating off by "
        f"{report['parity']['mean_difference']:.4f} at most.",
        "",
    ]
    if limits:
        lines += [
            "| images per second in process | " + " | ".join(f"{n}" for n in PROCESSES) + " |",
            "|---" * (len(PROCESSES) + 1) + "|",
        ]
        for stage in STAGES:
            found = [limits.get(f"{stage} {n}") for n in PROCESSES]
            cells = ["" if rate is None else f"{rate:,.0f}" for rate in found]
            lines.append(f"| {stage}, by processes | " + " | ".join(cells) + " |")
        lines.append("")
    lines += [
        "| images a request | in flight | images/s | of the decode limit | p50 ms | p99 ms "
        "| queue | decode | network ms |",
        "|---" * 9 + "|",
    ]
    best = max((rate for key, rate in limits.items() if key.startswith("decode ")), default=0.0)
    for row in report["loads"]:
        if rounds := row["rounds"]:
            throughput, p50, p99 = (
                statistics.median(one[key] for one in rounds)
                for key in ("throughput", "p50", "p99")
            )
            cells = [str(row["batch"]), str(row["concurrency"]), f"{throughput:,.0f}"]
            cells += [f"{throughput / best:.2f}" if best else "", f"{p50:.1f}", f"{p99:.1f}"]
            inside = [one["stages"] for one in rounds if one.get("stages")]
            for stage in ("queue", "decode", "network"):
                known = [stages[stage] for stages in inside]
                cells.append(f"{statistics.median(known):.1f}" if known else "")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write serve.json and serve.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, nargs="+", help="photos and folders of photos")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"))
    parser.add_argument("--url", default="", help="gRPC host:port of a running server")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--instances", type=count, help="of each step; by default the config's")
    parser.add_argument("--no-mps", action="store_true", help="as `nima serve --no-mps`")
    parser.add_argument("--seconds", type=positive, default=3.0)
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument(
        "--loads", nargs="+", type=load,
        default=[*map(load, ("32x4", "32x8", "32x16", "8x32", "1x1", "1x64"))],
        help="images a request x requests in flight",
    )  # fmt: skip
    parser.add_argument("--stop-timeout", type=positive, default=10.0, help="seconds")
    parser.add_argument("--no-limits", action="store_true", help="leave the limits out")
    options = parser.parse_args()
    with told_by(parser):
        perf_analyzer = find_perf_analyzer()
        photos = [ava_sized(photo) for photo in load_photos(options.photos)]
    spec = load_metadata(default_repository()).spec
    files = [photo.data for photo in photos]
    size = sum(map(len, files)) / len(files) / 1e3
    gpus = find_gpus()
    report: dict[str, Any] = {
        "gpu": asdict(gpus[0]) if gpus else {"name": "no GPU", "driver": "none"},
        "machine": describe_machine(),
        "photos": f"{len(files)} photos of 500 x 375 or 375 x 500, {size:.0f} kB on average",
        "limits": {f"{stage} {n}": [] for stage in STAGES for n in PROCESSES},
        "loads": [
            {"batch": each.batch, "concurrency": each.concurrency, "rounds": []}
            for each in options.loads
        ],
        "complete": False,
    }
    options.out.mkdir(parents=True, exist_ok=True)

    # Only after a figure: what an earlier run left is better than a report of nothing.
    def save() -> None:
        content = json.dumps(report, indent=2) + "\n"
        write_atomic(options.out / "serve.json", content.encode())
        if any(row["rounds"] for row in report["loads"]):
            write_atomic(options.out / "serve.md", to_markdown(report).encode())

    def measure_limits() -> None:
        with sharing(server):
            for key, found in report["limits"].items():
                stage, _, processes = key.partition(" ")
                found.append(limit(stage, int(processes), files, spec, options.seconds / 3))
                print(key, found[-1], flush=True)
                save()

    server = ServerOptions(
        device=options.device,
        mps=False if options.no_mps else None,
        instances=options.instances,
        log_file=options.out / "tritonserver.log",
        stop_timeout=options.stop_timeout,
    )
    with tempfile.TemporaryDirectory(prefix="nima-gpu-") as folder:
        inputs = Path(folder) / "inputs.json"
        write_perf_inputs(photos, inputs)
        if not options.no_limits:
            measure_limits()
        with serving(options.url, server) as (url, facts):
            report["server"] = facts
            report["parity"] = judge(url, photos, spec)
            with contextlib.closing(StageMeter(url)) as meter:
                for _ in range(options.rounds):
                    for each, row in zip(options.loads, report["loads"], strict=True):
                        meter.lap()
                        found = run_perf_analyzer(perf_analyzer, url, inputs, each, options.seconds)
                        stages = meter.lap()
                        inside = asdict(stages) if stages is not None else None
                        row["rounds"].append({**asdict(found), "stages": inside})
                        print(each, found, stages, flush=True)
                        save()
        if not options.no_limits:
            measure_limits()
    report["complete"] = True
    save()
    print(to_markdown(report))


if __name__ == "__main__":
    with stoppable("gpu/serve.py"), told_in_a_line("gpu/serve.py"):
        main()
