"""Many requests: every one answered, memory flat."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SERVER = Path(__file__).parent / "support" / "run_server.py"
PAGE = os.sysconf("SC_PAGE_SIZE")


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


@pytest.fixture
def remote() -> Iterator[str]:
    """A server in another process, so that the memory measured is the client's alone."""
    with subprocess.Popen(
        [sys.executable, str(SERVER)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.send_signal(signal.SIGTERM)


def soak(client: Any, photos: list[bytes], requests: int, *, warm_up: int, allowed: int) -> None:
    stream = client.score_iter(itertools.islice(itertools.cycle(photos), requests), ordered=False)
    seen, base = 0, 0
    for score in stream:
        assert score.mean >= 1.0
        seen += 1
        if seen == warm_up:
            base = resident()
    assert seen == requests
    grown = resident() - base
    print(f"{requests} requests: {base / 2**20:.1f} MiB, then {grown / 2**20:+.1f} MiB")
    assert grown < allowed, f"{grown / 2**20:.1f} MiB more after {requests} requests"


@pytest.mark.parametrize(
    ("requests", "photo_size"),
    [
        pytest.param(6_000, (64, 48), id="6000"),
        pytest.param(
            100_000, (64, 48), id="100000", marks=[pytest.mark.slow, pytest.mark.timeout(900)]
        ),
    ],
)
def test_memory_stays_flat(
    caller: Callable[..., Any], remote: str, photo: Callable[..., bytes], requests: int,
    photo_size: tuple[int, int],
) -> None:  # fmt: skip
    photos = [photo(i, size=photo_size) for i in range(50)]
    # A leak of a hundred bytes a request would be 10 MB in the long mode.
    soak(caller(remote), photos, requests, warm_up=3_000, allowed=6 * 2**20)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_stays_flat_over_the_real_server(
    caller: Callable[..., Any], triton: Any, photo: Callable[..., bytes]
) -> None:
    photos = [photo(i, size=(320, 240)) for i in range(50)]
    soak(caller(triton.grpc_url), photos, 20_000, warm_up=2_000, allowed=10 * 2**20)
