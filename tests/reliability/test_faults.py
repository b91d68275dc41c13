"""After each fault, every image that was accepted has exactly one score or one explicit failure.

All servers are real; each runs in a process group of its own and is signalled by its pid.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from _load import at, drive, expected_scores, photos, stubs_of, supervised
from _proxy import Proxy

from nima_build.server import RestartPolicy, ServerOptions
from nima_client import NimaClient, RetryPolicy

COUNT = 240


@pytest.fixture
def options(repository: Path) -> ServerOptions:
    return ServerOptions(model_repository=repository, instances=2)


@pytest.mark.parametrize("victim", ["server", "stub"])
def test_a_killed_process_loses_no_image(options: ServerOptions, victim: str) -> None:
    with supervised(options) as (server, supervisor, lines):
        expected = expected_scores(server.grpc_url)

        def kill() -> None:
            pid = server.pid if victim == "server" else min(server.stub_pids())
            os.kill(pid, signal.SIGKILL)

        fault = at(100, kill)
        began = time.monotonic()
        with NimaClient(server.grpc_url) as client:
            account = drive(client, COUNT, fault)
        print(f"{victim} killed: {lines}, {time.monotonic() - began:.1f} s for {COUNT} images")
        assert account.check(COUNT, expected) == {"scored": COUNT}
        assert supervisor.restarts == 1


@pytest.mark.slow
def test_repeated_kills_lose_no_image(options: ServerOptions) -> None:
    """Both processes, three times, while one client goes on."""
    with supervised(options) as (server, supervisor, _):
        expected = expected_scores(server.grpc_url)

        def during(done: int) -> None:
            if done in (100, 500, 900):
                pids = sorted(server.stub_pids())
                os.kill(server.pid if done == 500 else pids[0], signal.SIGKILL)

        with NimaClient(server.grpc_url) as client:
            account = drive(client, 1_200, during)
        assert account.check(1_200, expected) == {"scored": 1_200}
        assert supervisor.restarts == 3


def test_a_frozen_server_is_replaced(options: ServerOptions) -> None:
    """SIGSTOP: sockets stay open and nothing answers; only the probe notices."""
    policy = RestartPolicy(probe_seconds=0.5, probe_timeout=2.0, failures=2)
    with supervised(options, policy) as (server, supervisor, lines):
        expected = expected_scores(server.grpc_url)
        fault = at(100, lambda: os.kill(server.pid, signal.SIGSTOP))
        with NimaClient(server.grpc_url) as client:
            account = drive(client, COUNT, fault)
        print(f"frozen: {lines}, all scored {time.monotonic() - fault.seconds:.1f} s after")
        assert account.check(COUNT, expected) == {"scored": COUNT}
        assert supervisor.restarts == 1
        assert any("probes failed" in line for line in lines)


@pytest.mark.parametrize("model", ["nima_preprocess", "nima_network"])
def test_a_stub_that_stood_still_hands_out_no_others_score(
    options: ServerOptions, model: str
) -> None:
    """Triton gives its request up after a second, and would take its answer for the next one's."""
    # Nearly always each stub says so itself. Once both had ended without: then once more.
    assert stood_still(options, model) or stood_still(options, model)


def stood_still(options: ServerOptions, model: str) -> bool:
    """Whether a stub gave that as its reason for ending; every image had its own score."""
    with supervised(options) as (server, supervisor, lines):
        expected = expected_scores(server.grpc_url)

        def stand_still() -> None:
            stubs = stubs_of(server, model)
            for pid in stubs:
                os.kill(pid, signal.SIGSTOP)
            time.sleep(1.5)
            for pid in stubs:
                os.kill(pid, signal.SIGCONT)

        with NimaClient(server.grpc_url, request_size=1) as client:
            account = drive(client, COUNT, at(100, stand_still))
        print(f"stood still: {lines}")
        assert account.check(COUNT, expected) == {"scored": COUNT}
        assert supervisor.restarts == 1
        return f"{model} stood still" in server.log_path.read_text()


def test_a_frozen_server_and_an_impatient_client(options: ServerOptions) -> None:
    """What waits longer than it may is an explicit failure, and the stream ends."""
    with supervised(options) as (server, _, _):
        expected = expected_scores(server.grpc_url)
        fault = at(100, lambda: os.kill(server.pid, signal.SIGSTOP))
        try:
            with NimaClient(server.grpc_url, request_timeout=1.0, max_in_flight=8) as client:
                account = drive_to_the_end(client, 200, fault)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        kinds = account.check(200, expected)
        print(f"impatient: {kinds}")
        assert kinds["scored"] >= 100
        assert set(kinds) == {"scored", "DEADLINE"}
        with NimaClient(server.grpc_url) as client:
            assert drive(client, 30).check(30, expected) == {"scored": 30}


def drive_to_the_end(client: NimaClient, count: int, during: Callable[[int], None]):
    """As ``drive``, over a list: ``score`` answers for every image even where going on is vain."""
    from _load import Account

    from nima_client import ImageScore

    account, images = Account(), [photos()[i % len(photos())] for i in range(count)]
    first = client.score(images[:100], on_error="return")
    during(100)
    rest = client.score(images[100:], on_error="return")
    for result in first:
        account.answers[result.index].append(result.distribution)
    for result in rest:
        scored = isinstance(result, ImageScore)
        account.answers[100 + result.index].append(result.distribution if scored else result.code)
    return account


def test_cut_connections_lose_no_image(shared_server) -> None:
    expected = expected_scores(shared_server.grpc_url)
    with Proxy(shared_server.grpc_url) as proxy:

        def cut() -> None:
            proxy.refusing = True
            proxy.cut()
            threading.Timer(1.0, lambda: setattr(proxy, "refusing", False)).start()

        with NimaClient(proxy.url) as client:
            account = drive(client, COUNT, at(100, cut))
        assert account.check(COUNT, expected) == {"scored": COUNT}
        assert proxy.connections >= 2


def test_a_slow_network_loses_no_image(shared_server) -> None:
    expected = expected_scores(shared_server.grpc_url)
    with Proxy(shared_server.grpc_url) as proxy:
        proxy.delay = 0.1
        with NimaClient(proxy.url, max_in_flight=16) as client:
            account = drive(client, 60)
        assert account.check(60, expected) == {"scored": 60}


def test_a_network_that_swallows_everything_for_a_while(shared_server) -> None:
    """Nothing arrives for two seconds, then everything does: late, and once."""
    expected = expected_scores(shared_server.grpc_url)
    with Proxy(shared_server.grpc_url) as proxy:

        def stall() -> None:
            proxy.stalled = True
            threading.Timer(2.0, lambda: setattr(proxy, "stalled", False)).start()

        with NimaClient(proxy.url) as client:
            account = drive(client, 200, at(80, stall))
        assert account.check(200, expected) == {"scored": 200}


def test_a_network_that_never_comes_back_is_an_explicit_failure(shared_server) -> None:
    expected = expected_scores(shared_server.grpc_url)
    with Proxy(shared_server.grpc_url) as proxy:

        def end() -> None:
            proxy.refusing = True
            proxy.cut()

        retry = RetryPolicy(budget_s=2.0)
        with NimaClient(proxy.url, retry=retry, request_timeout=3.0) as client:
            account = drive_to_the_end(client, 200, at(100, end))
        kinds = account.check(200, expected)
        assert kinds == {"scored": 100, "UNREACHABLE": 100}


def test_two_servers_and_one_dies(start_server: Callable[..., object]) -> None:
    first, second = start_server(), start_server()
    expected = expected_scores(first.grpc_url)
    url = f"ipv4:{first.grpc_url},{second.grpc_url}"
    fault = at(150, lambda: os.kill(first.pid, signal.SIGKILL))
    with NimaClient(url) as client:
        account = drive(client, COUNT, fault)
    assert account.check(COUNT, expected) == {"scored": COUNT}


def test_a_draining_server_loses_no_image(start_server: Callable[..., object]) -> None:
    """SIGTERM to one of two: what it has accepted it finishes, the rest goes to the other."""
    first, second = start_server(), start_server()
    expected = expected_scores(first.grpc_url)
    url = f"ipv4:{first.grpc_url},{second.grpc_url}"
    fault = at(150, lambda: os.kill(first.pid, signal.SIGTERM))
    with NimaClient(url) as client:
        account = drive(client, COUNT, fault)
    assert account.check(COUNT, expected) == {"scored": COUNT}


def test_a_server_that_crashes_while_starting_is_started_again(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed by its pid as soon as it runs: twice it may crash, and then it serves."""
    from nima_build.server import EmbeddedServer

    launches = []
    wait_ready = EmbeddedServer._wait_ready

    def crash_twice(server: EmbeddedServer) -> None:
        launches.append(server.pid)
        if len(launches) <= 2:
            os.kill(server.pid, signal.SIGABRT)
        wait_ready(server)

    monkeypatch.setattr(EmbeddedServer, "_wait_ready", crash_twice)
    with EmbeddedServer(ServerOptions(model_repository=repository, instances=1)) as server:
        assert len(set(launches)) == 3
        with NimaClient(server.grpc_url) as client:
            account = drive(client, 5)
        assert account.check(5, expected_scores(server.grpc_url)) == {"scored": 5}
        server.end_processes(grace=0)
