"""Open-loop load through the project's own client: requests leave at times fixed beforehand.

A closed loop slows down with the server and so hides its queues. Here photos are sent at Poisson
times whatever the answers do, and a latency counts from the time a request was due, not from when
this program got round to sending it (coordinated omission).
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from nima_build.bench import BenchError
from nima_build.bench.perf_analyzer import Measured


@dataclass(frozen=True)
class OpenLoopResult:
    """Outcome of an open loop.

    Attributes:
        measured: throughput and latencies of the answered requests.
        sent: requests sent.
        failed: those without a score; their latencies are not in ``measured``.
        first_failure: the first of their reasons.
    """

    measured: Measured
    sent: int
    failed: int
    first_failure: str = ""


def due_times(rate: float, seconds: float, seed: int) -> list[float]:
    """Times of a Poisson process of ``rate`` per second, up to ``seconds``; at least one."""
    source, now = random.Random(seed), 0.0
    times: list[float] = []
    while (now := now + source.expovariate(rate)) < seconds or not times:
        times.append(now)
    return times


async def _run(
    url: str, photos: Sequence[bytes], times: Sequence[float]
) -> tuple[list[float], list[str], float]:
    from nima_client import AsyncNimaClient, NimaError

    latencies: list[float] = []
    failures: list[str] = []
    async with AsyncNimaClient(url) as client:
        await client.score_one(photos[0])
        begin = time.perf_counter()

        async def one(index: int, due: float) -> None:
            try:
                await client.score_one(photos[index % len(photos)])
            except NimaError as error:
                failures.append(" ".join(str(error).split())[:200])
            else:
                latencies.append(time.perf_counter() - begin - due)

        tasks = []
        for index, due in enumerate(times):
            await asyncio.sleep(begin + due - time.perf_counter())
            tasks.append(asyncio.create_task(one(index, due)))
        await asyncio.gather(*tasks)
        return latencies, failures, time.perf_counter() - begin


def percentiles(latencies: Sequence[float]) -> tuple[float, float, float]:
    """p50, p95 and p99 in milliseconds of latencies in seconds."""
    if len(latencies) < 2:
        only = latencies[0] * 1000
        return only, only, only
    cuts = statistics.quantiles(latencies, n=100, method="inclusive")
    return cuts[49] * 1000, cuts[94] * 1000, cuts[98] * 1000


def run_open_loop(
    url: str, photos: Sequence[bytes], rate: float, seconds: float, seed: int = 0
) -> OpenLoopResult:
    """Send photos at ``rate`` a second for ``seconds``, and wait for every answer.

    Args:
        url: ``host:port`` of the gRPC endpoint.
        photos: encoded files, taken in turn.
        rate: requests a second, on average.
        seconds: length.
        seed: of the random times.

    Raises:
        BenchError: not one request was answered, or not the one that is sent beforehand.
    """
    from nima_client import NimaError

    try:
        latencies, failures, taken = asyncio.run(_run(url, photos, due_times(rate, seconds, seed)))
    except NimaError as error:
        raise BenchError(f"the first photo was not scored: {error}") from None
    if not latencies:
        raise BenchError(f"no request was answered: {failures[0]}")
    mean = statistics.fmean(latencies) * 1000
    return OpenLoopResult(
        measured=Measured(len(latencies) / taken, *percentiles(latencies), mean),
        sent=len(latencies) + len(failures),
        failed=len(failures),
        first_failure=failures[0] if failures else "",
    )
