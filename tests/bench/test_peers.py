"""The comparison with peers: its load generator, its turns, its tables."""

from __future__ import annotations

import contextlib
import importlib
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

PEERS = Path(__file__).resolve().parents[2] / "benchmarks" / "peers"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@pytest.fixture(scope="module")
def peers():
    """The modules of the comparison, which import each other by their bare names."""
    names = ("http_load", "tables", "turns", "servers", "rounds", "compare")
    sys.path.insert(0, str(PEERS))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(PEERS))
        for module in list(sys.modules):
            if PEERS in Path(getattr(sys.modules[module], "__file__", None) or "/").parents:
                del sys.modules[module]


@pytest.fixture
def http_load(peers):
    return peers.http_load


class TinyServer:
    """Answers every request after its whole body has come, or with an error, or never."""

    def __init__(self, answer: bytes, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.answer, self.bodies, self.connections = answer, [], 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()[:2]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        # A load that gives up on this server's answers resets its connections.
        with contextlib.suppress(ConnectionError):
            self._answer_all(connection)

    def _answer_all(self, connection: socket.socket) -> None:
        stream = connection.makefile("rb")
        while line := stream.readline():
            length = 0
            while line not in (b"\r\n", b""):
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
                line = stream.readline()
            self.bodies.append(stream.read(length))
            time.sleep(self.seconds)
            connection.sendall(self.answer)


def test_the_generator_sends_whole_bodies_and_waits_for_every_answer(http_load):
    server = TinyServer(OK)
    photos = [bytes([k]) * 300_000 for k in range(3)]
    requests = [http_load.post("h", "/score", "image/jpeg", photo) for photo in photos]
    rate, latencies, answered = http_load.closed_loop(
        server.address, requests, 4, seconds=0.4, warm_up=0.1
    )
    server.listener.close()
    assert rate == pytest.approx(len(latencies) / 0.4)
    assert min(latencies) > 0
    assert set(server.bodies) == set(photos)
    assert len(server.bodies) == answered >= len(latencies)


def test_an_error_is_no_throughput(http_load):
    server = TinyServer(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n")
    request = http_load.post("h", "/score", "image/jpeg", b"photo")
    with pytest.raises(http_load.LoadError, match="503"):
        http_load.closed_loop(server.address, [request], 2, seconds=0.2)
    server.listener.close()


def test_a_single_request_takes_one_connection(http_load):
    server = TinyServer(OK)
    request = http_load.post("h", "/score", "image/jpeg", b"photo" * 100_000)
    assert [http_load.ask(server.address, request) for _ in range(3)] == [b"ok"] * 3
    server.listener.close()
    assert server.connections == 3


def sample(peers, server: str, number: int, rate: float, p99: float, cpu: float):
    latencies = tuple(float(ms) for ms in range(1, 101)) if server == "own" else (p99,) * 10
    return peers.tables.Sample(server, 8, number, rate, 200.0, cpu, 50.0, 60.0, p99, latencies)


def samples(peers, rates=(90.0, 30.0, 76.0)):
    """Three rounds of the product, and as many of a peer as it has rates."""
    own = [(100.0, 60.0), (50.0, 100.0), (80.0, 40.0)]
    return [
        *(sample(peers, "own", k, rate, p99, 10.0) for k, (rate, p99) in enumerate(own)),
        *(sample(peers, "peer", k, rate, 90.0, 12.0) for k, rate in enumerate(rates)),
    ]


def test_peers_are_compared_by_the_rounds_own_ratios(peers):
    found, tables = samples(peers), peers.tables
    text = tables.tables(found, ["own", "peer"], [8])
    # Ratios 0.9, 0.6, 0.95: their median, not the ratio of the medians (0.95).
    assert "| peer | **0.90** · 76/s · 38% |" in text
    # 1.5, 0.9 and 2.25, beside the p99 of all requests.
    assert "| peer | **1.50** (0.90–2.25) · 90 · 1.80 |" in text
    assert "| own | **1.00** (1.00–1.00) · 99 · 1.20 |" in text
    assert "| peer | **1.20** · 12.0 ms |" in text
    assert "Limit in process: 200.0 images/s." in text
    assert tables.plot(found, ["own", "peer"], [8], "title").startswith(b"\x89PNG")
    offline = [tables.OfflineSample("script", 0, 25.0, 40.0, 100.0, 10.0)]
    assert "| script | 25.0 | **0.25** | 40.0 | **4.0** |" in tables.offline_table(offline)


def test_a_peer_that_failed_is_compared_in_the_rounds_it_has(peers):
    found, tables = samples(peers, rates=(90.0,)), peers.tables
    assert "| peer | **0.90** · 90/s · 45% | – |" in tables.tables(found, ["own", "peer"], [8, 16])
    assert tables.plot(found, ["own", "peer"], [8, 16], "title").startswith(b"\x89PNG")


CHILD = "import time\nwhile True: time.sleep(0.05)"
PARENT = f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {CHILD!r}])\n"


@contextlib.contextmanager
def fake_server(name: str):
    """A process with a child, and both as psutil has them."""
    process = subprocess.Popen([sys.executable, "-c", PARENT + CHILD], start_new_session=True)
    first = psutil.Process(process.pid)
    try:
        while not (children := first.children()):
            time.sleep(0.02)
        yield SimpleNamespace(name=name, pid=process.pid, tree=[first, *children])
    finally:
        for one in first.children(recursive=True) if process.poll() is None else ():
            one.kill()
        process.kill()
        process.wait()


def assert_stopped(*wanted: tuple[SimpleNamespace, bool]) -> None:
    """The signal takes effect when the kernel next looks at the process, so within a moment."""
    deadline = time.monotonic() + 5
    while True:
        found = [
            [process.status() == psutil.STATUS_STOPPED for process in server.tree] == [state] * 2
            for server, state in wanted
        ]
        if all(found):
            return
        assert time.monotonic() < deadline, found
        time.sleep(0.01)


def test_servers_stand_still_but_for_the_one_whose_turn_it_is(peers):
    with fake_server("one") as one, fake_server("two") as two:
        with contextlib.suppress(KeyError), peers.turns.Turns([one, two]) as turns:
            assert_stopped((one, True), (two, True))
            with turns.of(one):
                assert_stopped((one, False), (two, True))
            with contextlib.suppress(ValueError), turns.of(two):
                assert_stopped((one, True), (two, False))
                raise ValueError("a load that failed")
            assert_stopped((one, True), (two, True))
            raise KeyError("a run that failed")
        assert_stopped((one, False), (two, False))
        # One that has ended disturbs no turn.
        one.tree[0].terminate()
        one.tree[1].kill()
        with peers.turns.Turns([one, two]) as turns, turns.of(one):
            assert_stopped((two, True))


class FakeLimit:
    """Stands for the processes that measure the limit: 100, 110, 120 … images a second."""

    def __init__(self) -> None:
        self.last = 90.0

    def rate(self, _stage: str, _seconds: float) -> float:
        self.last += 10.0
        return self.last


@pytest.fixture
def trial(peers, tmp_path, monkeypatch):
    """Two servers of which one can be made to fail, and what ``compare.py`` keeps of them."""
    machine = {"cpu": "a CPU", "cores": 2, "memory_gib": 8.0, "python": "3", "packages": {}}
    run = peers.compare.Run(
        out=tmp_path / "peers-small",
        title="3 photos",
        machine={**machine, "load_average_before": 0.0},
        network="a network",
        precision="fp32",
        concurrencies=[1, 2],
        seconds=0.1,
        names=["own", "peer"],
    )
    monkeypatch.setattr(peers.turns, "SETTLE", 0.01)
    monkeypatch.setattr(peers.servers.Target, "cpu_seconds", lambda _: time.perf_counter())
    request = peers.http_load.post("h", "/score", "image/jpeg", b"photo")
    with fake_server("own") as own, fake_server("peer") as peer:
        tiny = {name: TinyServer(OK, 0.005) for name in run.names}
        targets = [
            peers.servers.Target(one.name, tiny[one.name].address, [request], one.pid)
            for one in (own, peer)
        ]

        def measure(fails: str = "") -> int:
            saved = []

            def save() -> None:
                saved.append(len(run.samples))
                run.save()
                if fails:
                    tiny[fails].answer = b"HTTP/1.1 500 Broken\r\ncontent-length: 0\r\n\r\n"

            peers.rounds.measure(
                *(targets, FakeLimit(), [1, 2], 0.1, 3, run.samples, run.failures, save)
            )
            return saved

        yield run, measure
        for server in tiny.values():
            server.listener.close()


def test_a_peer_that_fails_is_named_and_left_out_and_the_rest_goes_on(trial):
    run, measure = trial
    assert measure(fails="peer") == [4, 6, 8]
    assert [s.server for s in run.samples] == [*["own", "peer"] * 2, *["own"] * 4]
    assert list(run.failures) == ["peer"]
    assert run.failures["peer"].startswith("round 2, 1 in flight: HTTP/1.1 500 Broken")
    run.finished = True
    run.save()
    document = json.loads(run.out.with_name("peers-small.json").read_text())
    assert document["complete"] is False
    assert len(document["samples"]) == 8
    assert "**Left out** peer: round 2" in run.out.with_name("peers-small.md").read_text()


def test_the_run_ends_with_the_product_and_keeps_its_rounds(trial):
    run, measure = trial
    assert measure(fails="own") == [4, 5]  # the peer went first in the second round
    assert list(run.failures) == ["own"]
    assert "**Incomplete**" in run.text()


def test_every_turn_has_the_limit_of_right_before_and_after(trial):
    run, measure = trial
    measure()
    assert run.failures == {}
    assert [s.limit for s in run.samples[:4]] == [105.0, 115.0, 125.0, 135.0]
    # The order rotates with the rounds.
    assert [s.server for s in run.samples[:8]] == [*["own", "peer"] * 2, *["peer", "own"] * 2]
    run.finished = True
    assert json.loads(run.document())["complete"] is True


SERVER = """
import http.server, subprocess, sys
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
print(child.pid, flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.send_response(200)
        self.send_header("content-length", "11")
        self.end_headers()
        self.wfile.write(b'{"mean": 5}')
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
COMPARISON = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
import servers, turns
folder = Path(sys.argv[1])
spec = SimpleNamespace(to_dict=dict)
setting = SimpleNamespace(
    folder=folder, onnx="", workers=1, photos=[b"photo"], metadata=SimpleNamespace(spec=spec)
)
port = servers._free_port()
command = [sys.executable, "-c", sys.argv[2], str(port)]
with servers._process("peer", setting, command, port, "raw") as target:
    with turns.Turns([target]):
        print(target.pid, flush=True)
        time.sleep(600)
"""


def test_a_comparison_that_is_killed_leaves_no_stopped_server(tmp_path):
    comparison = subprocess.Popen(
        [sys.executable, "-c", COMPARISON, str(tmp_path), SERVER],
        cwd=PEERS, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert comparison.stdout is not None
    first = psutil.Process(int(comparison.stdout.readline()))
    below = psutil.Process(int((tmp_path / "peer.log").read_text().split()[0]))
    guards = [p for p in psutil.Process(comparison.pid).children() if p != first]
    try:
        assert first.status() == below.status() == psutil.STATUS_STOPPED
        comparison.kill()
        comparison.wait()
        gone, left = psutil.wait_procs([first, below, *guards], timeout=30)
        assert not left
        assert len(gone) == 3
    finally:
        comparison.stdout.close()
        for process in (first, below):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
