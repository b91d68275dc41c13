"""The SDK against bare tritonclient: the same photos, the same window, in one run.

    python benchmarks/sdk_overhead.py                         embedded server, photos made here
    python benchmarks/sdk_overhead.py --url HOST:PORT --photos FOLDER

Rounds are interleaved and their order turns, so that a busy machine slows all alike; the ratio is
the median of the rounds' ratios. Latency is that of one image at a time, the two taking turns.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tritonclient.grpc as bare
import tritonclient.grpc.aio as bare_aio
from PIL import Image

from nima_client import AsyncNimaClient, NimaClient
from nima_client.contract import INPUT_IMAGE, MODEL_NAME


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
    """Seconds of single calls, bare and SDK, taking turns."""
    ours, theirs = [], []
    with bare.InferenceServerClient(url) as plain, NimaClient(url) as client:
        for number in range(calls + 10):
            photo = photos[number % len(photos)]
            start = time.perf_counter()
            plain.infer(MODEL_NAME, infer_input(photo)).as_numpy("MEAN")
            middle = time.perf_counter()
            client.score_one(photo)
            end = time.perf_counter()
            if number >= 10:  # after warm-up
                theirs.append(middle - start)
                ours.append(end - middle)
    return theirs, ours


@contextlib.contextmanager
def server(url: str | None) -> Iterator[str]:
    """The server named, or the embedded one for this run."""
    if url is not None:
        yield url
        return
    from nima_build.server import EmbeddedServer

    with EmbeddedServer() as embedded:
        yield embedded.grpc_url


def main() -> None:
    """Measure and print; ``--json FILE`` keeps the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--url")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--count", type=int, default=400, help="photos a round")
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    photos = load_photos(given.photos, given.count)
    runners: dict[str, Callable[[str, list[bytes], int], float]] = {
        "bare sync": bare_sync, "SDK sync": sdk_sync,
        "bare aio": bare_asyncio, "SDK aio": sdk_asyncio,
    }  # fmt: skip
    rates: dict[str, list[float]] = {name: [] for name in runners}
    cpu: dict[str, list[float]] = {name: [] for name in runners}
    with server(given.url) as url:
        bare_sync(url, photos[:100], given.window)
        order = list(runners)
        for _ in range(given.rounds):
            for name in order:
                before = time.process_time()
                rates[name].append(len(photos) / runners[name](url, photos, given.window))
                cpu[name].append((time.process_time() - before) / len(photos) * 1e3)
            order = order[1:] + order[:1]
        plain, ours = latencies(url, photos, given.calls)

    size = sum(map(len, photos)) / len(photos) / 1024
    print(
        f"{given.rounds} rounds of {len(photos)} photos ({size:.0f} KiB each), window "
        f"{given.window}, {os.cpu_count()} cores (load {os.getloadavg()[0]:.1f})"
    )
    for name, values in rates.items():
        print(
            f"  {name:<10} {statistics.median(values):7.1f} photos/s "
            f"({min(values):.1f} to {max(values):.1f}), "
            f"{statistics.median(cpu[name]):.2f} ms of the client's CPU a photo"
        )
    figures: dict[str, float] = {}
    for kind in ("sync", "aio"):
        pairs = zip(rates[f"SDK {kind}"], rates[f"bare {kind}"], strict=True)
        figures[kind] = statistics.median(a / b for a, b in pairs)
        print(f"  SDK / bare, {kind}: {figures[kind]:.3f}")
    added = [o - p for o, p in zip(ours, plain, strict=True)]
    figures["added_ms"] = statistics.median(added) * 1e3
    print(
        f"  one call: bare {statistics.median(plain) * 1e3:.2f} ms, SDK "
        f"{statistics.median(ours) * 1e3:.2f} ms, added {figures['added_ms']:+.2f} ms (medians)"
    )
    if given.json is not None:
        given.json.write_text(json.dumps({**figures, "rates": rates}, indent=2) + "\n")


if __name__ == "__main__":
    main()
