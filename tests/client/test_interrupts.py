"""Ctrl-C anywhere in a call, as in a notebook: the client goes on, and can be closed."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from kserve_server import KServeServer

from nima_client import NimaClient, RequestCancelled

Make = Callable[..., Any]

INTERRUPTED = """
import os, random, signal, sys, threading
from nima_client import NimaClient

# What a shell runs in the background ignores Ctrl-C, and that is inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)

url, method, photo = sys.argv[1], sys.argv[2], bytes.fromhex(sys.argv[3])
calls = {
    "score_one": lambda: client.score_one(photo),
    "score": lambda: client.score([photo] * 6),
    "score_iter": lambda: list(client.score_iter([photo] * 50)),
}
rng = random.Random(3)
with NimaClient(url) as client:
    client.score_one(photo)
    for _ in range(40):
        after = 0.001 + 0.03 * rng.random()
        alarm = threading.Timer(after, os.kill, [os.getpid(), signal.SIGINT])
        try:
            alarm.start()
            while True:
                calls[method]()
        except KeyboardInterrupt:
            pass
        alarm.join()
        assert client.score_one(photo, timeout=10).mean
        assert len(client.score([photo] * 8, timeout=10)) == 8
print("closed")
"""


@pytest.mark.parametrize("method", ["score_one", "score", "score_iter"])
def test_interrupted_at_random_a_client_goes_on(
    server: KServeServer, photo: Make, method: str
) -> None:
    server.delay = 0.002
    command = [sys.executable, "-c", INTERRUPTED, server.url, method, photo(1).hex()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "closed\n", done.stderr


def test_an_interrupt_before_grpc_watches_a_request_costs_only_that_call(
    server: KServeServer, photo: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(state: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    client = NimaClient(server.url)
    assert client.score_one(photo(1)).mean
    # The call is counted by then, and nobody will ever take its answer.
    monkeypatch.setattr(grpc._channel, "_run_channel_spin_thread", interrupted)
    with pytest.raises(KeyboardInterrupt):
        client.score([photo(number) for number in range(8)])
    assert len(client.score([photo(number) for number in range(8)], timeout=10)) == 8
    assert _ends(client.close)


@pytest.mark.parametrize("method", ["add_done_callback", "cancel"])
def test_an_interrupt_that_holds_a_lock_of_grpc_costs_only_that_call(
    server: KServeServer, photo: Make, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def interrupted(call: Any, *args: object) -> None:
        monkeypatch.undo()
        # As Condition.__enter__ leaves it; gRPC's thread, and with it every answer, waits for it.
        call._state.condition.acquire()
        raise KeyboardInterrupt

    server.delay = 0.05
    client = NimaClient(server.url, request_size=1)
    photos = [photo(number) for number in range(40)]
    stream = client.score_iter(photos)
    next(stream)
    monkeypatch.setattr(grpc._channel._MultiThreadedRendezvous, method, interrupted)
    ways: dict[str, Callable[[], object]] = {
        "add_done_callback": lambda: list(stream),
        "cancel": stream.close,  # type: ignore[attr-defined]
    }
    with pytest.raises(KeyboardInterrupt):
        ways[method]()
    assert len(client.score(photos[:8], timeout=10)) == 8
    assert _ends(client.close)


def test_a_close_that_was_interrupted_is_a_close(
    server: KServeServer, photo: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = NimaClient(server.url)
    assert client.score_one(photo(1)).mean
    channel = client._transport._channel  # type: ignore[attr-defined]
    closed = threading.Event()
    real = channel._close

    def interrupted() -> None:
        channel._close = lambda: (closed.set(), real())
        raise KeyboardInterrupt

    channel._close = interrupted
    with pytest.raises(KeyboardInterrupt):
        client.close()
    assert closed.wait(10)
    assert _ends(client.close)
    with pytest.raises(RequestCancelled):
        client.score_one(photo(1))


def _ends(call: Callable[[], object]) -> bool:
    """Whether a call ends, in a thread that a test run need not wait for."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(10)
    return not thread.is_alive()
