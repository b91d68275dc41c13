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

from nima_client import NimaClient

Make = Callable[..., Any]

INTERRUPTED = """
import os, random, signal, sys, threading
from nima_client import NimaClient

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
    closing = threading.Thread(target=client.close, daemon=True)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()
