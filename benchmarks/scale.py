"""What one more core brings, whether memory stays flat, what a large folder costs.

    python benchmarks/scale.py --photos FOLDER [--stream-seconds 60] [--files 1000] [--out FOLDER]

Three measurements into one ``scale.json``:

- cores: throughput of a server confined to one core, two, and so on up to all (it chooses as many
  instances of each step), in turn with the in-process limit on as many cores; the client is not
  confined;
- memory: resident and shared memory of server, stubs and client while a stream is scored, once with
  the real network and camera-like photos, once with small photos and a network that only averages
  (``--simulated``), so that a stream of a million images takes minutes, not hours;
- folder: time and peak memory of ``nima score`` over many files.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil

from nima_build.bench.arguments import count, not_negative, positive, told_by
from nima_build.bench.limit import LimitMeter
from nima_build.bench.machine import describe_machine
from nima_build.bench.photos import load_photos, split_by_size
from nima_build.bench.rounds import told_in_a_line
from nima_build.cores import available_cores
from nima_build.repository import default_repository, load_metadata
from nima_build.server import EmbeddedServer, ServerOptions
from nima_client import NimaClient
from nima_client._files import write_atomic
from nima_client._signals import stoppable

IN_FLIGHT = 8
MIB = 2**20
# getrusage's peak of a child counts this program's, whose copy it begins as: nima tells its own.
_NIMA = """import sys
from nima_client.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print(*(line for line in open("/proc/self/status") if "VmHWM" in line), file=sys.stderr)
"""


def throughput(url: str, photos: Sequence[bytes], seconds: float) -> float:
    """Images per second with :data:`IN_FLIGHT` requests in flight, through the SDK."""
    with NimaClient(url, request_size=1, max_in_flight=IN_FLIGHT) as client:
        client.score(photos[:IN_FLIGHT])
        begin = time.perf_counter()
        stream = client.score_iter(itertools.cycle(photos), ordered=False)
        for answered, _ in enumerate(stream, start=1):
            if (taken := time.perf_counter() - begin) > seconds:
                return answered / taken
    raise AssertionError("an endless stream ended")


@contextlib.contextmanager
def confined(count: int) -> Iterator[None]:
    """Processes that this thread starts run on the first ``count`` cores only."""
    available = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(available)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, available)


def cores(
    photos: Sequence[bytes], repository: Path, seconds: float, rounds: int
) -> list[dict[str, float]]:
    """Throughput and limit for every number of cores; medians over rounds, in turn."""
    spec = load_metadata(repository).spec
    onnx = repository / "nima_network" / "1" / "model.onnx"
    counts = range(1, available_cores() + 1)
    samples: dict[int, list[tuple[float, float]]] = {count: [] for count in counts}
    with LimitMeter(photos, spec, onnx) as meter:
        for _ in range(rounds):
            for count, found in samples.items():
                with contextlib.ExitStack() as up:
                    with confined(count):
                        options = ServerOptions(model_repository=repository)
                        server = up.enter_context(EmbeddedServer(options))
                    before = meter.rate("combined", seconds / 2, cores=count)
                    rate = throughput(server.grpc_url, photos, seconds)
                    after = meter.rate("combined", seconds / 2, cores=count)
                found.append((rate, (before + after) / 2))
                print(f"{count} cores: {rate:.1f} images/s, limit {found[-1][1]:.1f}", flush=True)
    return [
        {
            "cores": count,
            "images_per_second": statistics.median(rate for rate, _ in found),
            "per_core": statistics.median(rate / count for rate, _ in found),
            "share_of_limit": statistics.median(rate / limit for rate, limit in found),
        }
        for count, found in samples.items()
    ]


def _memory(server: EmbeddedServer) -> dict[str, float]:
    """MiB: private memory of server, stubs and this client, and the server's shared memory."""

    def private(pid: int) -> float:
        info = psutil.Process(pid).memory_info()
        return (info.rss - info.shared) / MIB

    assert server.pid is not None
    shared = sum(
        path.stat().st_blocks * 512 for path in Path("/dev/shm").glob(f"{server.shm_prefix}*")
    )
    return {
        "server": private(server.pid),
        "stubs": sum(private(pid) for pid in server.stub_pids()),
        "client": private(os.getpid()),
        "shared": shared / MIB,
    }


def growth(samples: Sequence[dict[str, float]]) -> dict[str, float]:
    """MiB an image of each kind of memory: slopes of straight lines through at least two samples.

    Not rounded: a leak of a few bytes an image is megabytes in a million.
    """
    scored = [sample["scored"] for sample in samples]
    return {
        key: float(np.polyfit(scored, [sample[key] for sample in samples], 1)[0])
        for key in ("server", "stubs", "client", "shared")
    }


def memory(
    photos: Sequence[bytes], repository: Path, seconds: float, images: float = float("inf")
) -> dict[str, object]:
    """Score a stream for so long, or so many images, and watch memory; growth is fitted over the
    second half, of two samples at least: the first and the last.
    """
    samples: list[dict[str, float]] = []
    interval = max(1.0, seconds / 200)
    with (
        EmbeddedServer(ServerOptions(model_repository=repository)) as server,
        NimaClient(server.grpc_url, request_size=1, max_in_flight=IN_FLIGHT) as client,
    ):
        begin = following = time.perf_counter()
        scored = 0
        for scored, _ in enumerate(client.score_iter(itertools.cycle(photos)), start=1):
            now = time.perf_counter()
            if now >= following:
                samples.append({"scored": scored, "seconds": now - begin, **_memory(server)})
                following = now + interval
            if now - begin > seconds or scored >= images:
                break
        samples.append({"scored": scored, "seconds": now - begin, **_memory(server)})
    half = samples[(len(samples) - 1) // 2 :]
    slopes = growth(half)
    images = half[-1]["scored"] - half[0]["scored"]
    grown = ", ".join(f"{key} {slope * images:.3g}" for key, slope in slopes.items())
    print(
        f"{scored} images scored in {now - begin:.0f} s; growth in MiB over the second half, "
        f"{images:.0f} images: {grown}",
        flush=True,
    )
    per_1000 = {key: 1000 * slope for key, slope in slopes.items()}
    return {"scored": scored, "growth_mib_per_1000": per_1000, "samples": samples}


def nima(*arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run ``nima``; what became of it, and its peak memory in MiB."""
    command = [sys.executable, "-c", _NIMA, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    peak = re.search(r"VmHWM:\s*(\d+) kB", done.stderr)
    return done, int(peak[1]) / 1024 if peak else float("nan")


def folder(photos: Sequence[bytes], repository: Path, files: int) -> dict[str, float]:
    """``nima score`` over ``files`` files against a running server."""
    with tempfile.TemporaryDirectory(prefix="nima-scale-") as name:
        root = Path(name)
        for index in range(files):
            source = root / f"{index:06d}.jpg"
            original = root / f"{index % len(photos):06d}.jpg"
            if index < len(photos):
                source.write_bytes(photos[index])
            else:
                os.link(original, source)
        with EmbeddedServer(ServerOptions(model_repository=repository)) as server:
            begin = time.perf_counter()
            done, peak = nima("score", str(root), "--url", server.grpc_url, "--format", "jsonl")
            taken = time.perf_counter() - begin
    if done.returncode != 0 or len(done.stdout.splitlines()) != files:
        raise SystemExit(f"nima score failed: {done.stderr[-500:]}")
    print(f"nima score: {files} files in {taken:.1f} s, peak memory {peak:.0f} MiB", flush=True)
    return {"files": files, "seconds": taken, "files_per_second": files / taken, "peak_mib": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument(
        "--seconds", type=positive, default=3.0, help="of one throughput measurement"
    )
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--stream-seconds", type=positive, default=60.0)
    parser.add_argument(
        "--simulated",
        type=not_negative,
        default=60.0,
        help="seconds of the simulated stream; 0 for none",
    )
    parser.add_argument(
        "--simulated-images", type=count, default=float("inf"), help="end of that stream, if sooner"
    )
    parser.add_argument("--files", type=count, default=1000)
    parser.add_argument("--model-repository", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path("out/scale"))
    options = parser.parse_args()
    repository = options.model_repository or default_repository()
    machine = describe_machine()
    with told_by(parser):
        sets = split_by_size(load_photos([options.photos]))
    photos = [photo.data for photo in sets[0].photos]
    options.out.mkdir(parents=True, exist_ok=True)
    result: dict[str, object] = {"machine": machine, "photos": sets[0].describe()}

    def keep(name: str, found: object) -> None:
        """Written after each: one that fails, or Ctrl-C, loses none of those before."""
        result[name] = found
        text = json.dumps(result, indent=1) + "\n"
        write_atomic(options.out / "scale.json", text.encode())

    keep("folder", folder(photos, repository, options.files))
    keep("cores", cores(photos, repository, options.seconds, options.rounds))
    keep("memory", memory(photos, repository, options.stream_seconds))
    if options.simulated:
        from averaging import simulated

        with tempfile.TemporaryDirectory(prefix="nima-scale-") as name:
            light, small = simulated(repository, Path(name) / "models")
            keep(
                "memory_simulated",
                memory(small, light, options.simulated, options.simulated_images),
            )
    print(f"Written: {options.out / 'scale.json'}")


if __name__ == "__main__":
    with stoppable("scale.py"), told_in_a_line("scale.py"):
        main()
