"""A dead or killed server comes back, and a client that retries loses no image.

The frozen one is in ``tests/reliability/test_faults.py``.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from nima_build.server import EmbeddedServer, Probe, RestartPolicy, ServerOptions, Supervisor

QUICK = RestartPolicy(check_seconds=0.1, probe_seconds=0.5, probe_timeout=2.0)


@contextmanager
def supervised(policy: RestartPolicy = QUICK) -> Iterator[tuple[EmbeddedServer, Supervisor, list]]:
    """A server under supervision.

    The restarted server ends with the thread that launched it, so the supervisor's thread lives
    until the very end.
    """
    said: list[str] = []
    with EmbeddedServer(ServerOptions(instances=2)) as server:
        supervisor = Supervisor(server, policy, report=said.append)
        thread = threading.Thread(target=supervisor.run)
        thread.start()
        try:
            yield server, supervisor, said
        finally:
            supervisor.stop()
            thread.join(30)
            assert not thread.is_alive()
            # A clean end takes seconds, and has tests of its own.
            server.end_processes(grace=0)


def wait_for_restart(server: EmbeddedServer, supervisor: Supervisor, count: int) -> None:
    deadline = time.monotonic() + 60
    while supervisor.restarts < count:
        assert time.monotonic() < deadline, "no restart within a minute"
        time.sleep(0.1)
    assert Probe(server.grpc_url)().alive


def test_a_killed_stub_under_load_costs_a_retrying_client_nothing(encode, infer):
    with supervised() as (server, supervisor, said):
        photos = [encode(seed=seed, size=(640, 480)) for seed in range(60)]
        scores: dict[int, float] = {}

        def client(first: int) -> None:
            for index in range(first, len(photos), 4):
                deadline = time.monotonic() + 60
                while index not in scores and time.monotonic() < deadline:
                    try:
                        scores[index] = float(infer(server.grpc_url, [photos[index]])["MEAN"][0, 0])
                    except Exception:
                        time.sleep(0.2)

        threads = [threading.Thread(target=client, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        while len(scores) < 8:
            time.sleep(0.02)
        url, before = server.grpc_url, server.pid
        os.kill(min(server.stub_pids()), signal.SIGKILL)
        for thread in threads:
            thread.join(90)
        assert sorted(scores) == list(range(len(photos)))
        wait_for_restart(server, supervisor, 1)
        assert server.grpc_url == url
        assert server.pid != before
        assert any("stub" in line for line in said)


def test_a_killed_server_comes_back_more_than_once():
    with supervised() as (server, supervisor, _):
        for count in (1, 2):
            os.kill(server.pid, signal.SIGKILL)
            wait_for_restart(server, supervisor, count)


def test_a_healthy_server_is_left_alone():
    with supervised() as (server, supervisor, said):
        before = server.pid
        time.sleep(2)  # four probes
        assert (server.pid, supervisor.restarts, said) == (before, 0, [])


def test_a_busy_server_is_not_a_dead_one(encode, infer):
    policy = RestartPolicy(check_seconds=0.1, probe_seconds=0.2, probe_timeout=20.0, failures=1)
    photo = encode(size=(1600, 1200))
    with supervised(policy) as (server, supervisor, said):
        threads = [
            threading.Thread(target=lambda: infer(server.grpc_url, [photo] * 16)) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert (supervisor.restarts, said) == (0, [])
