"""A dead or killed server comes back, and a client that retries loses no image.

The frozen one is in ``tests/reliability/test_faults.py``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psutil

from nima_build.server import (
    EmbeddedServer,
    Probe,
    RestartPolicy,
    Rollout,
    ServerError,
    ServerOptions,
    Supervisor,
)

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


def test_a_busy_server_is_not_a_dead_one(encode, infer, monkeypatch):
    policy = RestartPolicy(check_seconds=0.1, probe_seconds=0.2, probe_timeout=20.0)
    photo = encode(size=(1600, 1200))
    probed, probe = [], Probe.__call__
    with supervised(policy) as (server, supervisor, said), ThreadPoolExecutor(8) as pool:
        monkeypatch.setattr(Probe, "__call__", lambda self: probed.append(1) or probe(self))
        calls = [pool.submit(infer, server.grpc_url, [photo] * 16) for _ in range(8)]
        assert all(len(call.result(60)["MEAN"]) == 16 for call in calls)
        assert probed, "no probe came while it was busy"
        assert (supervisor.restarts, said) == (0, [])


def test_a_restart_that_took_too_long_leaves_nothing_that_nobody_watches(monkeypatch):
    with supervised() as (server, supervisor, said):
        ready = server._wait_ready

        def late() -> None:
            monkeypatch.setattr(server, "_wait_ready", ready)
            ready()
            raise ServerError("not in time")

        monkeypatch.setattr(server, "_wait_ready", late)
        os.kill(server.pid, signal.SIGKILL)
        wait_for_restart(server, supervisor, 1)
        assert "restart failed: not in time" in said
        os.kill(min(server.stub_pids()), signal.SIGKILL)
        wait_for_restart(server, supervisor, 2)


def test_what_a_server_that_ended_had_loaded_takes_no_memory():
    """The new version was in place already, and is what the next server loads."""
    with supervised() as (server, supervisor, _):

        def action(_: object) -> Rollout:
            os.kill(server.pid, signal.SIGKILL)
            return Rollout(2, 1, server.metadata, 0.0, remains="Socket closed")

        assert server._change(action).remains == ""
        wait_for_restart(server, supervisor, 1)


def test_a_stub_lost_during_a_rollout_is_missed_at_once(monkeypatch):
    with supervised() as (server, supervisor, said):
        changed = server._stubs.changed
        # Not only when its patience is at an end.
        monkeypatch.setattr(
            server._stubs, "changed", lambda models, _, same: changed(models, 3600.0, same)
        )

        def action(_: object) -> Rollout:
            os.kill(min(server.stub_pids()), signal.SIGKILL)
            return Rollout(1, 1, server.metadata, 0.0)

        threading.Thread(target=server._change, args=(action,), daemon=True).start()
        wait_for_restart(server, supervisor, 1)
        assert "1 of 5 Python stubs went with the rollout" in said[0]


def test_a_child_that_just_ended_is_no_stub_and_hides_none(monkeypatch):
    with supervised() as (server, _, _):
        gone = psutil.Process()
        monkeypatch.setattr(gone, "status", lambda: (_ for _ in ()).throw(psutil.NoSuchProcess(1)))
        children = psutil.Process.children
        monkeypatch.setattr(
            psutil.Process, "children", lambda self, **given: [gone, *children(self, **given)]
        )
        assert len(server.stub_pids()) == 5
        assert server.defect() is None


def test_each_failed_restart_is_waited_for_twice_as_long_up_to_a_limit():
    said: list[str] = []

    class Broken:
        """A server that does not come up."""

        def probe(self, timeout: float) -> Any:
            return types.SimpleNamespace(close=lambda: None)

        def defect(self) -> str:
            return "gone"

        def end_processes(self, grace: float) -> None:
            pass

        def launch(self) -> None:
            raise ServerError("no")

    policy = RestartPolicy(
        check_seconds=0.01, probe_seconds=60, backoff_first=0.01, backoff_limit=0.05
    )
    supervisor = Supervisor(Broken(), policy, report=said.append)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    deadline = time.monotonic() + 30
    while len(said) < 10 and time.monotonic() < deadline:
        time.sleep(0.01)
    supervisor.stop()
    thread.join(30)
    waits = [line.split("restarting in ")[1] for line in said if "restarting" in line]
    assert waits[:5] == ["0.01 s", "0.02 s", "0.04 s", "0.05 s", "0.05 s"]
    assert said[1] == "restart failed: no"
    assert supervisor.restarts == 0


def test_a_signal_in_the_middle_of_a_wait_stops_it() -> None:
    """The lock of what is waited for is held there; of a ``threading.Event`` it is not re-entrant,
    and the process hung for good.
    """
    program = """
import signal, sys, threading
from nima_build.server import Supervisor

class Healthy:
    defect = probe = lambda *_: None

class Watching(Supervisor):
    def _probe_forever(self):
        pass

supervisor = Watching(Healthy())
signal.signal(signal.SIGTERM, lambda *_: supervisor.stop())

def send(frame, event, _):
    if event == "call" and frame.f_code is threading.Condition.wait.__code__:
        callers = []
        while frame := frame.f_back:
            callers.append(frame.f_code)
        if Supervisor.run.__code__ in callers and threading.Thread.start.__code__ not in callers:
            sys.setprofile(None)
            signal.raise_signal(signal.SIGTERM)

sys.setprofile(send)
supervisor.run()
print("ended")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30
    )
    assert done.stdout == "ended\n", done.stderr


def test_a_stop_just_before_a_restart_does_not_wait_for_it() -> None:
    launched: list[bool] = []

    class Dead(EmbeddedServer):
        def launch(self) -> None:
            launched.append(True)

    supervisor = Supervisor(Dead(), RestartPolicy(check_seconds=0.01), report=lambda _: None)

    class Late(type(supervisor._stop)):
        """Set when it has been waited for the second time: after the backoff."""

        waits = 0

        def wait(self, timeout: float) -> bool:
            self.waits += 1
            if self.waits == 2:
                self.set()
                return False
            return super().wait(timeout)

    supervisor._stop = Late()
    supervisor._probe_forever = lambda: None
    supervisor.run()
    assert not launched
