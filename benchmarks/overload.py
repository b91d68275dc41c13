"""Goodput when twice as much is asked of a server as it can do.

    python benchmarks/overload.py [--seconds 20] [--deadline 1.0] [--require 0.9] [--json FILE]

Starts the embedded server and measures its capacity with a closed loop (eight requests under way).
Then it sends requests at a fixed rate of one, one and a half and two times that capacity, whatever
comes back (an open loop, as many independent clients make it), each with a deadline. Goodput is
what was scored within its deadline, per second, over the capacity. The server runs on its own
cores where there are enough; on two cores the load generator takes its share from it, and does so
in the measurement of the capacity as well.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import io
import json
import re
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from PIL import Image
from tritonclient.grpc import service_pb2, service_pb2_grpc

from nima_build.bench import BenchError
from nima_build.bench.arguments import not_negative, positive
from nima_build.bench.machine import describe_machine
from nima_build.bench.rounds import told_in_a_line
from nima_build.repository import GRAPHS
from nima_build.server import EmbeddedServer, ServerOptions
from nima_client._defaults import QUEUE_SHARE
from nima_client._files import write_atomic
from nima_client._signals import stoppable
from nima_client._transport import InferRequest
from nima_client._wire import encode_request
from nima_client.contract import NETWORK_MODEL, PREPROCESS_MODEL


def photo(width: int = 768, height: int = 512) -> bytes:
    """A JPEG of natural size and detail."""
    random = np.random.default_rng(5)
    coarse = Image.fromarray(random.integers(0, 256, (24, 36, 3), np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    noise = random.normal(0, 6, pixels.shape)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)).save(
        buffer, "JPEG", quality=90
    )
    return buffer.getvalue()


def _message(image: bytes, timeout_s: float) -> service_pb2.ModelInferRequest:
    request = InferRequest((image,), request_id="", queue_timeout_s=timeout_s)
    return service_pb2.ModelInferRequest.FromString(encode_request(request))


# A proxy cannot reach this machine's own loopback.
_NO_PROXY = [("grpc.enable_http_proxy", 0)]
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Generator:
    """Sends one message over one channel and counts what comes back."""

    def __init__(self, url: str, image: bytes, deadline: float) -> None:
        self._channel = grpc.aio.insecure_channel(url, options=_NO_PROXY)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._message = _message(image, deadline * QUEUE_SHARE)
        self._deadline = deadline
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.latencies: list[float] = []

    async def send(self) -> None:
        """One request; what became of it is counted under its status."""
        begin = time.monotonic()
        try:
            await self._stub.ModelInfer(self._message, timeout=self._deadline)
        except grpc.aio.AioRpcError as error:
            reason = "queue full" if "maximum queue size" in (error.details() or "") else ""
            reason = reason or (
                "queue timeout" if "timeout expired" in (error.details() or "") else ""
            )
            self.outcomes[f"{error.code().name} {reason}".strip()] += 1
        else:
            self.outcomes["scored"] += 1
            self.latencies.append(time.monotonic() - begin)

    async def closed_loop(self, seconds: float, concurrency: int) -> float:
        """Scores per second with ``concurrency`` requests under way."""
        end, begin = time.monotonic() + seconds, time.monotonic()

        async def worker() -> None:
            while time.monotonic() < end:
                await self.send()

        await asyncio.gather(*(worker() for _ in range(concurrency)))
        return self.outcomes["scored"] / (time.monotonic() - begin)

    async def open_loop(self, seconds: float, rate: float) -> tuple[float, float]:
        """Requests sent and scores received per second, sending at ``rate`` come what may."""
        begin, sent = time.monotonic(), 0
        tasks: set[asyncio.Task[None]] = set()
        while (now := time.monotonic()) < begin + seconds:
            while sent < (now - begin) * rate:
                task = asyncio.create_task(self.send())
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                sent += 1
            await asyncio.sleep(0.002)
        took = time.monotonic() - begin
        await asyncio.gather(*tasks)
        return sent / took, self.outcomes["scored"] / took

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


def executions(metrics_url: str) -> dict[str, float]:
    """Images that each composing model has worked on, from Triton's own counters."""
    with _OPENER.open(f"http://{metrics_url}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    found = re.findall(r'nv_inference_count\{model="(\w+)",[^}]*\} ([\d.e+]+)', text)
    return {model: float(value) for model, value in found}


def percentile_ms(latencies: list[float], percent: float) -> float | None:
    """Of latencies in seconds; None without any, since JSON knows no NaN."""
    return round(1e3 * float(np.percentile(latencies, percent)), 1) if latencies else None


def tell(line: str) -> None:
    """One line a measurement, as it comes."""
    print(f"overload.py: {line}", file=sys.stderr, flush=True)


async def measure(
    server: EmbeddedServer,
    seconds: float,
    deadline: float,
    factors: list[float],
    result: dict[str, Any],
) -> None:
    """The whole run against a started server.

    Args:
        server: it.
        seconds: length of each phase.
        deadline: seconds that a request may take.
        factors: of the capacity, one a phase.
        result: takes the figures of each phase when it is over.

    Raises:
        BenchError: nothing was scored of what the capacity is measured by.
    """
    image = photo()
    warm = Generator(server.grpc_url, image, 30.0)
    await warm.closed_loop(2.0, 8)
    await warm.close()
    closed = Generator(server.grpc_url, image, 30.0)
    capacity = await closed.closed_loop(seconds, 8)
    await closed.close()
    if not capacity:
        raise BenchError(f"the server scored nothing in {seconds:g} s: {dict(closed.outcomes)}")
    result |= {"capacity_per_s": round(capacity, 1), "deadline_s": deadline}
    tell(f"capacity {capacity:.1f} images/s")
    for factor in factors:
        before = executions(server.metrics_url)
        generator = Generator(server.grpc_url, image, deadline)
        offered, good = await generator.open_loop(seconds, factor * capacity)
        await generator.close()
        await asyncio.sleep(1.0)
        after = executions(server.metrics_url)
        work = {m: after[m] - before[m] for m in (PREPROCESS_MODEL, NETWORK_MODEL)}
        result[f"x{factor:g}"] = {
            "offered_per_s": round(offered, 1),
            "goodput_per_s": round(good, 1),
            "goodput_share": round(good / capacity, 3),
            "p50_ms": percentile_ms(generator.latencies, 50),
            "p99_ms": percentile_ms(generator.latencies, 99),
            "outcomes": dict(generator.outcomes),
            # Work for requests whose client had gone is the rest of this.
            "network_runs_a_score": round(
                work[NETWORK_MODEL] / max(1, generator.outcomes["scored"]), 3
            ),
            "preprocess_runs_a_score": round(
                work[PREPROCESS_MODEL] / max(1, generator.outcomes["scored"]), 3
            ),
        }
        tell(f"x{factor:g}: {good:.1f} images/s in time, {good / capacity:.0%} of the capacity")


def main() -> int:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=positive, default=20.0, help="length of each phase")
    parser.add_argument("--deadline", type=positive, default=1.0, help="seconds a request may take")
    parser.add_argument("--factors", type=positive, nargs="+", default=[1.0, 1.5, 2.0])
    parser.add_argument("--precision", default="fp32", choices=list(GRAPHS))
    parser.add_argument("--model-repository", type=Path)
    parser.add_argument("--extra", nargs="*", default=[], help="further tritonserver arguments")
    parser.add_argument(
        "--require", type=not_negative, default=0.0,
        help="exit with status 1 when goodput is below this share of the capacity in any phase",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, help="write the result here as well")
    given = parser.parse_args()
    options = ServerOptions(
        model_repository=given.model_repository,
        extra_arguments=tuple(given.extra),
        precision=given.precision,
    )
    facts = {"machine": describe_machine(), "precision": given.precision}
    result: dict[str, Any] = {}
    complete = False
    try:
        with EmbeddedServer(options) as server:
            asyncio.run(measure(server, given.seconds, given.deadline, given.factors, result))
        complete = True
    finally:
        # Of a run that fails or is stopped, the phases that were over.
        if result:
            text = json.dumps({"complete": complete, **result, **facts}, indent=2)
            print(text, flush=True)
            if given.json:
                write_atomic(given.json, f"{text}\n".encode())
    shares = {key: row["goodput_share"] for key, row in result.items() if key[:1] == "x"}
    low = [f"{share} at {key}" for key, share in shares.items() if share < given.require]
    if low:
        print(f"goodput below {given.require} of the capacity: {', '.join(low)}", file=sys.stderr)
    return 1 if low else 0


if __name__ == "__main__":
    with stoppable("overload.py"), told_in_a_line("overload.py"):
        sys.exit(main())
