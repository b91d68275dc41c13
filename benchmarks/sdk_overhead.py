"""The SDK against bare tritonclient: the same photos, the same window, in one run.

    python benchmarks/sdk_overhead.py                         embedded server, photos made here
    python benchmarks/sdk_overhead.py --stub                  a server that only answers
    python benchmarks/sdk_overhead.py --url HOST:PORT --photos FOLDER

Both run in pairs of short rounds that take turns at going first, so that a busy machine slows both
alike; a ratio is the median of the pairs' ratios. The client's own CPU time is the sturdier figure.
Latency is that of one image at a time, the two taking turns.
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
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tritonclient.grpc as bare
import tritonclient.grpc.aio as bare_aio
from PIL import Image

from nima_client import AsyncNimaClient, NimaClient
from nima_client.contract import INPUT_IMAGE, MODEL_NAME

STUB = Path(__file__).resolve().parents[1] / "tests" / "client" / "support" / "run_server.py"


def load_photos(folder: Path | None, count: int) -> list[bytes]:
    """``count`` encoded photos: those of a folder again and again, or smooth ones made here."""
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
    return [some[i % len(some)] for i in range(count)]


def infer_input(photo: bytes) -> list[bare.InferInput]:
    """One photo as tritonclient wants it."""
    tensor = bare.InferInput(INPUT_IMAGE, [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[photo]], dtype=np.object_))
    return [tensor]


def bare_sync(url: str, photos: list[bytes], window: int) -> float:
    """Seconds that tritonclient's async_infer takes, with a semaphore as window."""
    errors: list[object] = []
    with bare.InferenceServerClient(url) as client:
        client.infer(MODEL_NAME, infer_input(photos[0]))
        room = threading.Semaphore(window)

        def done(result: bare.InferResult, error: Exception | None) -> None:
            if error is None:
                result.as_numpy("MEAN"), result.as_numpy("STD"), result.as_numpy("DISTRIBUTION")
            else:
                errors.append(error)
            room.release()

        start = time.perf_counter()
        for photo in photos:
            room.acquire()
            client.async_infer(MODEL_NAME, infer_input(photo), done)
        for _ in range(window):
            room.acquire()
        taken = time.perf_counter() - start
    assert not errors, errors[0]
    return taken


def sdk_sync(url: str, photos: list[bytes], window: int) -> float:
    """Seconds that NimaClient.score takes."""
    with NimaClient(url, max_in_flight=window) as client:
        client.score_one(photos[0])
        start = time.perf_counter()
        assert len(client.score(photos)) == len(photos)
        return time.perf_counter() - start


def bare_asyncio(url: str, photos: list[bytes], window: int) -> float:
    """Seconds that tritonclient's aio client takes, with a semaphore as window."""

    async def main() -> float:
        async with bare_aio.InferenceServerClient(url) as client:
            await client.infer(MODEL_NAME, infer_input(photos[0]))
            room = asyncio.Semaphore(window)

            async def one(photo: bytes) -> None:
                async with room:
                    result = await client.infer(MODEL_NAME, infer_input(photo))
                result.as_numpy("MEAN"), result.as_numpy("STD"), result.as_numpy("DISTRIBUTION")

            start = time.perf_counter()
            await asyncio.gather(*(one(photo) for photo in photos))
            return time.perf_counter() - start

    return asyncio.run(main())


def sdk_asyncio(url: str, photos: list[bytes], window: int) -> float:
    """Seconds that AsyncNimaClient.score takes."""

    async def main() -> float:
        async with AsyncNimaClient(url, max_in_flight=window) as client:
            await client.score_one(photos[0])
            start = time.perf_counter()
            assert len(await client.score(photos)) == len(photos)
            return time.perf_counter() - start

    return asyncio.run(main())


def latencies(url: str, photos: list[bytes], calls: int) -> tuple[list[float], list[float]]:
    """Seconds of single calls, bare and SDK, taking turns at going first."""
    taken: tuple[list[float], list[float]] = ([], [])
    with bare.InferenceServerClient(url) as plain, NimaClient(url) as client:

        def bare_call(photo: bytes) -> None:
            result = plain.infer(MODEL_NAME, infer_input(photo))
            result.as_numpy("MEAN"), result.as_numpy("STD"), result.as_numpy("DISTRIBUTION")

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
            assert process.stdout is not None
            yield process.stdout.readline().strip()
            process.terminate()
    else:
        from nima_build.server import EmbeddedServer

        with EmbeddedServer() as embedded:
            yield embedded.grpc_url


def quartiles(values: list[float]) -> str:
    """Median, and between which values the middle half lies."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} (middle half {low:.3f} to {high:.3f})"


def compare(url: str, photos: list[bytes], window: int, rounds: int) -> dict[str, float]:
    """Rounds of both in pairs; prints, and returns the medians."""
    figures: dict[str, float] = {}
    for kind, pair in {
        "sync": (bare_sync, sdk_sync),
        "aio": (bare_asyncio, sdk_asyncio),
    }.items():
        rates: tuple[list[float], list[float]] = ([], [])
        cpu: tuple[list[float], list[float]] = ([], [])
        for number in range(rounds):
            for which in (0, 1) if number % 2 else (1, 0):
                before = time.process_time()
                rates[which].append(len(photos) / pair[which](url, photos, window))
                cpu[which].append((time.process_time() - before) / len(photos) * 1e3)
        ratios = [ours / plain for plain, ours in zip(*rates, strict=True)]
        added = [ours - plain for plain, ours in zip(*cpu, strict=True)]
        print(
            f"  {kind:<5} bare {statistics.median(rates[0]):.1f}, SDK "
            f"{statistics.median(rates[1]):.1f} photos/s; SDK / bare {quartiles(ratios)}"
        )
        print(
            f"        client's CPU a photo: bare {statistics.median(cpu[0]):.3f} ms, SDK "
            f"{statistics.median(cpu[1]):.3f} ms; SDK minus bare {quartiles(added)} ms"
        )
        figures |= {
            f"{kind}_ratio": statistics.median(ratios),
            f"{kind}_added_cpu_ms": statistics.median(added),
        }
    return figures


def main() -> None:
    """Measure and print; ``--json FILE`` keeps the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--url")
    parser.add_argument("--stub", action="store_true", help="the tests' server, which only answers")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--count", type=int, default=200, help="photos a round")
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    photos = load_photos(given.photos, given.count)
    size = sum(map(len, photos)) / len(photos) / 1024
    with server(given.url, given.stub) as url:
        print(
            f"{given.rounds} pairs of rounds of {len(photos)} photos ({size:.0f} KiB each), window "
            f"{given.window}, {os.cpu_count()} cores (load {os.getloadavg()[0]:.1f})"
        )
        bare_sync(url, photos, given.window)
        sdk_sync(url, photos, given.window)
        figures = compare(url, photos, given.window, given.rounds)
        plain, ours = latencies(url, photos, given.calls)
    added = [o - p for p, o in zip(plain, ours, strict=True)]
    figures["added_ms"] = statistics.median(added) * 1e3
    print(
        f"  one call: bare {statistics.median(plain) * 1e3:.2f} ms, SDK "
        f"{statistics.median(ours) * 1e3:.2f} ms, added {figures['added_ms']:+.2f} ms (medians)"
    )
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
