"""How should the embedded profile schedule? Throughput and tail of three choices, interleaved.

    python benchmarks/scheduling.py [--photos FOLDER] [--concurrency 8] [--rounds 3]

Each round starts one server a choice, loads it, and stops it, so that all choices see the same
machine; the order rotates with the rounds. Ratios to the shipped choice are what counts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import skimage
import tritonclient.grpc as triton_grpc

from nima_build.bench import BenchError
from nima_build.bench.arguments import count
from nima_build.bench.rounds import Rounds
from nima_build.bench.variant import copy_repository, edit_config
from nima_build.repository import default_repository
from nima_build.server import EmbeddedServer, ServerOptions
from nima_build.triton_client import triton_client
from nima_client._signals import stoppable
from nima_client.contract import PREPROCESS_MODEL

# preferred batch sizes, queue delay in microseconds
CHOICES = {
    "one image at a time (shipped)": ([1], 0),
    "merge what waits": ([], 0),
    "merge, 2 ms delay": ([], 2000),
}


def repository_with(choice: tuple[list[int], int], folder: Path) -> Path:
    """A copy of the project's repository whose embedded profile schedules as told."""
    sizes, delay = choice
    target = copy_repository(default_repository(), folder / "models")
    with edit_config(target, PREPROCESS_MODEL, "embedded") as config:
        config.dynamic_batching.preferred_batch_size[:] = sizes
        config.dynamic_batching.max_queue_delay_microseconds = delay
    return target


def load(url: str, photos: list[bytes], concurrency: int, requests: int) -> tuple[float, float]:
    """Images per second and p99 latency in ms of single-image requests in a closed loop."""
    inputs = []
    for photo in photos:
        tensor = triton_grpc.InferInput("IMAGE", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[photo]], dtype=np.object_))
        inputs.append([tensor])
    window, finished = threading.Semaphore(concurrency), threading.Semaphore(0)
    latencies: list[float] = []
    errors: list[Exception] = []

    def done(begin: float, result: object, error: Exception | None) -> None:
        if error is not None:
            errors.append(error)
        latencies.append(time.perf_counter() - begin)
        window.release()
        finished.release()

    with triton_client(url) as client:
        start = time.perf_counter()
        for index in range(requests):
            window.acquire()
            callback = partial(done, time.perf_counter())
            client.async_infer("nima", inputs[index % len(inputs)], callback)
        for _ in range(requests):
            if not finished.acquire(timeout=60):
                raise TimeoutError("the server stopped answering")
        seconds = time.perf_counter() - start
    if errors:
        raise BenchError(f"{len(errors)} of {requests} requests failed: {errors[0]}")
    return requests / seconds, float(np.percentile(latencies, 99)) * 1e3


def table(found: dict[str, list[tuple[float, float]]]) -> str:
    """A row a choice; ratios to the shipped one."""
    shipped = next(iter(found.values()))
    lines = ["| scheduling | images/s | p99 ms | images/s ratio | p99 ratio |", "|---" * 5 + "|"]
    for name, rows in found.items():
        speed, tail = (statistics.median(column) for column in zip(*rows))
        speed_ratio, tail_ratio = (
            statistics.median(a[n] / b[n] for a, b in zip(rows, shipped)) for n in (0, 1)
        )
        lines.append(
            f"| {name} | {speed:.0f} | {tail:.0f} | {speed_ratio:.2f} | {tail_ratio:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the comparison and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, default=Path(skimage.__file__).parent / "data")
    parser.add_argument("--concurrency", type=count, default=8)
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--requests", type=count, default=300)
    options = parser.parse_args()
    photos = [p.read_bytes() for p in sorted(options.photos.glob("*.jp*g"))]
    if not photos:
        parser.error(f"no JPEG files in {options.photos}")
    rounds: Rounds[tuple[float, float]] = Rounds("scheduling.py", options.rounds)

    def measure(name: str) -> tuple[float, float]:
        with tempfile.TemporaryDirectory() as folder:
            repository = repository_with(CHOICES[name], Path(folder))
            with EmbeddedServer(ServerOptions(model_repository=repository)) as server:
                load(server.grpc_url, photos, options.concurrency, 40)
                return load(server.grpc_url, photos, options.concurrency, options.requests)

    with rounds.table(table):
        rounds.run(
            list(CHOICES),
            measure,
            lambda name, own: f"{name}: {own[0]:.1f} images/s, p99 {own[1]:.1f} ms",
        )


if __name__ == "__main__":
    with stoppable("scheduling.py"):
        main()
