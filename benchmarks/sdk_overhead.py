"""The SDK against bare tritonclient: the same photos, the same window, in one run.

    python benchmarks/sdk_overhead.py                         embedded server, photos made here
    python benchmarks/sdk_overhead.py --stub                  a server that only answers
    python benchmarks/sdk_overhead.py --url HOST:PORT --photos FOLDER

Both run in pairs of short rounds that take turns at going first, over connections that are open, so
that a busy machine slows both alike. The client's own CPU time is the sturdier figure. Latency is
that of one image at a time, the two taking turns.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tritonclient.grpc as bare
import tritonclient.grpc.aio as bare_aio
from PIL import Image

from nima_build.bench.arguments import count
from nima_build.bench.machine import describe_machine, one_line
from nima_client import AsyncNimaClient, ImageScore, NimaClient
from nima_client._address import endpoints, is_local
from nima_client._signals import stoppable
from nima_client.contract import INPUT_IMAGE, MODEL_NAME

STUB = Path(__file__).resolve().parents[1] / "tests" / "client" / "support" / "run_server.py"


def load_photos(folder: Path | None, count: int) -> list[bytes]:
    """``count`` encoded photos: those of a folder again and again, or smooth ones made here; none
    where the folder has none.
    """
    if folder is not None:
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
        some = [path.read_bytes() for path in files[:count]]
    else:
        random = np.random.default_rng(0)
        some = []
        for _ in range(16):
            small = Image.fromarray(random.integers(0, 256, (24, 32, 3), np.uint8))
            buffer = io.BytesIO()
            small.resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
            some.append(buffer.getvalue())
    return [some[i % len(some)] for i in range(count if some else 0)]


def infer_input(photo: bytes) -> list[bare.InferInput]:
    """One photo as tritonclient wants it."""
    tensor = bare.InferInput(INPUT_IMAGE, [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[photo]], dtype=np.object_))
    return [tensor]


Run = Callable[[list[bytes]], None]
"""Scores photos over a connection that is open already."""


def read_outputs(result: bare.InferResult) -> None:
    """What a caller of tritonclient would do with an answer."""
    result.as_numpy("MEAN"), result.as_numpy("STD"), result.as_numpy("DISTRIBUTION")


@contextlib.contextmanager
def bare_sync(url: str, window: int) -> Iterator[Run]:
    """Bare async_infer, with a semaphore as window."""
    errors: list[object] = []
    room = threading.Semaphore(window)

    def done(result: bare.InferResult, error: Exception | None) -> None:
        if error is None:
            read_outputs(result)
        else:
            errors.append(error)
        room.release()

    with bare.InferenceServerClient(url) as client:

        def run(photos: list[bytes]) -> None:
            for photo in photos:
                room.acquire()
                client.async_infer(MODEL_NAME, infer_input(photo), done)
            for _ in range(window):
                room.acquire()
            room.release(window)
            assert not errors, errors[0]

        yield run


@contextlib.contextmanager
def sdk_sync(url: str, window: int) -> Iterator[Run]:
    """NimaClient.score."""
    with NimaClient(url, request_size=1, max_in_flight=window) as client:
        yield lambda photos: check(client.score(photos), photos)


@contextlib.contextmanager
def bare_asyncio(url: str, window: int) -> Iterator[Run]:
    """The bare aio client, with a semaphore as window."""
    loop = asyncio.new_event_loop()
    client: bare_aio.InferenceServerClient | None = None

    async def main(photos: list[bytes]) -> None:
        nonlocal client
        client = client or bare_aio.InferenceServerClient(url)
        room = asyncio.Semaphore(window)

        async def one(photo: bytes) -> None:
            async with room:
                read_outputs(await client.infer(MODEL_NAME, infer_input(photo)))

        await asyncio.gather(*(one(photo) for photo in photos))

    yield lambda photos: loop.run_until_complete(main(photos))
    loop.run_until_complete(client.close())
    loop.close()


@contextlib.contextmanager
def sdk_asyncio(url: str, window: int) -> Iterator[Run]:
    """AsyncNimaClient.score."""
    loop = asyncio.new_event_loop()
    client = AsyncNimaClient(url, request_size=1, max_in_flight=window)
    yield lambda photos: check(loop.run_until_complete(client.score(photos)), photos)
    loop.run_until_complete(client.close())
    loop.close()


def check(scores: list[ImageScore], photos: list[bytes]) -> None:
    """Every photo has its score."""
    assert len(scores) == len(photos)


def latencies(url: str, photos: list[bytes], calls: int) -> tuple[list[float], list[float]]:
    """Seconds of single calls, bare and SDK, taking turns at going first."""
    taken: tuple[list[float], list[float]] = ([], [])
    with bare.InferenceServerClient(url) as plain, NimaClient(url, request_size=1) as client:

        def bare_call(photo: bytes) -> None:
            read_outputs(plain.infer(MODEL_NAME, infer_input(photo)))

        pair = (bare_call, client.score_one)
        for number in range(calls + 10):
            for which in (0, 1) if number % 2 else (1, 0):
                start = time.perf_counter()
                pair[which](photos[number % len(photos)])
                if number >= 10:  # after warm-up
                    taken[which].append(time.perf_counter() - start)
    return taken


@contextlib.contextmanager
def server(url: str | None, stub: bool) -> Iterator[str]:
    """The server named, the tests' server in a process of its own, or the embedded tritonserver."""
    if url is not None:
        yield url
    elif stub:
        with subprocess.Popen(
            [sys.executable, str(STUB)], stdout=subprocess.PIPE, text=True
        ) as process:
            # Popen waits for it, so that it must be told to end whatever happened.
            try:
                assert process.stdout is not None
                yield process.stdout.readline().strip()
            finally:
                process.terminate()
    else:
        from nima_build.server import EmbeddedServer

        with EmbeddedServer() as embedded:
            yield embedded.grpc_url


def dial_alike(url: str) -> None:
    """The SDK dials this machine's own loopback itself; have tritonclient go through no proxy."""
    if is_local(url):
        hosts = ",".join(host for host, _ in endpoints(url))
        os.environ["no_grpc_proxy"] = hosts  # noqa: SIM112 - as gRPC spells it


def measure(
    runs: tuple[Run, Run], photos: list[bytes], pairs: int
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds and CPU seconds of each round, both [pairs, 2]."""
    wall, cpu = np.zeros((pairs, 2)), np.zeros((pairs, 2))
    for run in runs:
        run(photos)
    for number in range(pairs):
        for which in (0, 1) if number % 2 else (1, 0):
            before, start = time.process_time(), time.perf_counter()
            runs[which](photos)
            wall[number, which] = time.perf_counter() - start
            cpu[number, which] = time.process_time() - before
    return wall, cpu


def ratio_interval(wall: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval, over the pairs, of the SDK's throughput to the bare client's."""
    pairs = len(wall)
    drawn = np.random.default_rng(0).integers(0, pairs, (2000, pairs))
    sums = wall[drawn].sum(1)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], (0.025, 0.975))
    return float(low), float(high)


def compare(url: str, photos: list[bytes], window: int, pairs: int) -> dict[str, float]:
    """Rounds of both in pairs; prints, and returns throughput ratio and added CPU time."""
    figures: dict[str, float] = {}
    for kind, plain, ours in (
        ("sync", bare_sync, sdk_sync),
        ("aio", bare_asyncio, sdk_asyncio),
    ):
        with plain(url, window) as one, ours(url, window) as other:
            wall, cpu = measure((one, other), photos, pairs)
        rates = pairs * len(photos) / wall.sum(0)
        low, high = ratio_interval(wall)
        used = np.median(cpu, 0) / len(photos) * 1e3
        added = float(np.median(cpu[:, 1] - cpu[:, 0])) / len(photos) * 1e3
        print(
            f"  {kind:<5} bare {rates[0]:.1f}, SDK {rates[1]:.1f} photos/s: SDK / bare "
            f"{rates[1] / rates[0]:.3f} (95 % interval {low:.3f} to {high:.3f})\n"
            f"        client's CPU a photo: bare {used[0]:.3f} ms, SDK {used[1]:.3f} ms; "
            f"SDK minus bare {added:+.3f} ms (median of the pairs)",
            flush=True,
        )
        figures |= {f"{kind}_ratio": float(rates[1] / rates[0]), f"{kind}_added_cpu_ms": added}
    return figures


def main() -> None:
    """Measure and print; ``--json FILE`` keeps the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--url")
    parser.add_argument("--stub", action="store_true", help="the tests' server, which only answers")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--count", type=count, default=50, help="photos a round")
    parser.add_argument("--window", type=count, default=16)
    parser.add_argument("--pairs", type=count, default=60, help="pairs of rounds")
    parser.add_argument("--calls", type=count, default=200, help="single calls")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    machine = describe_machine()
    photos = load_photos(given.photos, given.count)
    if not photos:
        parser.error(f"no JPEG files in {given.photos}")
    size = sum(map(len, photos)) / len(photos) / 1024
    with server(given.url, given.stub) as url:
        dial_alike(url)
        print(
            f"{given.pairs} pairs of rounds of {len(photos)} photos ({size:.0f} KiB each), window "
            f"{given.window}; {one_line(machine)}"
        )
        figures = compare(url, photos, given.window, given.pairs)
        plain, ours = latencies(url, photos, given.calls)
    added = [o - p for p, o in zip(plain, ours, strict=True)]
    figures["added_ms"] = statistics.median(added) * 1e3
    print(
        f"  one call: bare {statistics.median(plain) * 1e3:.2f} ms, SDK "
        f"{statistics.median(ours) * 1e3:.2f} ms, added {figures['added_ms']:+.2f} ms (medians)"
    )
    if given.json is not None:
        given.json.write_text(json.dumps({**figures, "machine": machine}, indent=2) + "\n")


if __name__ == "__main__":
    with stoppable("sdk_overhead.py"):
        main()
