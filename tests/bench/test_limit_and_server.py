"""The load test against a real tritonserver, and the guard against regressions.

Only ratios within one run are compared, never times: machines differ, and so does one machine from
hour to hour. The bounds are generous; `nima bench` has the real figures.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from typer.testing import CliRunner

from nima_build.bench import BenchError
from nima_build.bench.limit import LimitMeter
from nima_build.bench.open_loop import run_open_loop
from nima_build.bench.perf_analyzer import Load, find_perf_analyzer, run_perf_analyzer
from nima_build.bench.photos import PhotoSet, load_photos, write_perf_inputs
from nima_build.bench.served import served_network
from nima_build.bench.session import Sweep, run_sweep
from nima_build.bench.stages import StageMeter
from nima_build.cli.bench import app as bench_app
from nima_build.repository import ONNX_NAME, default_repository, load_metadata
from nima_build.server import EmbeddedServer, ServerOptions
from nima_client import NimaClient
from nima_client.contract import NETWORK_MODEL

# An idle machine gives 0.9; another process that takes a core for a while must not fail the test.
LEAST_SHARE_OF_LIMIT = 0.5
LARGEST_SHARE_OUTSIDE_THE_STEPS = 0.6
LARGEST_FAULTS_TO_FILE = 2.0


@pytest.fixture(scope="module")
def photos(skimage_photos, encode, tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(4):
        (folder / f"{seed}.jpg").write_bytes(encode("JPEG", (768, 512), seed=seed, quality=92))
    return load_photos([folder])


@pytest.fixture(scope="module")
def encoded(photos):
    return [photo.data for photo in photos]


@pytest.fixture(scope="module")
def meter(triton, encoded):
    onnx = default_repository() / NETWORK_MODEL / "1" / ONNX_NAME
    with LimitMeter(encoded, triton.metadata.spec, onnx) as meter:
        yield meter


def closed_loop(url, encoded, concurrency, seconds):
    """Images per second with ``concurrency`` in flight, through the project's client."""
    with NimaClient(url, max_in_flight=concurrency) as client:
        client.score(encoded)
        begin = time.perf_counter()
        endless = client.score_iter(itertools.cycle(encoded), ordered=False)
        for answered, _ in enumerate(endless, start=1):
            if (taken := time.perf_counter() - begin) > seconds:
                return answered / taken
    raise AssertionError("an endless stream ended")


def minor_faults(server):
    """Pages that tritonserver and its stubs had to be given since they started."""
    stats = (Path(f"/proc/{pid}/stat").read_text() for pid in {server.pid, *server.stub_pids()})
    return sum(int(stat.rpartition(")")[2].split()[7]) for stat in stats)


def test_limits_are_in_proportion(meter):
    limits = [meter.measure(0.3) for _ in range(3)]
    # The best of each: a machine that is busy with something else is no limit.
    decode, network, combined = (
        max(getattr(limit, name) for limit in limits) for name in ("decode", "network", "combined")
    )
    # Doing both takes about as long as one after the other.
    assert combined == pytest.approx(1 / (1 / decode + 1 / network), rel=0.6)
    assert min(limit.alone_ms for limit in limits) > 0


def test_throughput_stays_near_the_limit_of_the_machine(triton, meter, encoded):
    shares = []
    for _ in range(3):
        before = meter.rate("combined", 0.5)
        throughput = closed_loop(triton.grpc_url, encoded, concurrency=8, seconds=1.5)
        after = meter.rate("combined", 0.5)
        shares.append(throughput / statistics.mean([before, after]))
    assert statistics.median(shares) >= LEAST_SHARE_OF_LIMIT, shares


def test_the_two_steps_are_most_of_a_lone_request(triton, encoded):
    stages = StageMeter(triton.grpc_url)
    assert stages.lap() is None
    shares = []
    for _ in range(3):
        closed_loop(triton.grpc_url, encoded, concurrency=1, seconds=0.5)
        lap = stages.lap()
        steps = lap.decode + lap.network
        # Leaving the loop cancels a request between the steps.
        assert 0 < steps <= lap.server * 1.25
        shares.append(1 - steps / lap.server)
    stages.close()
    assert min(shares) <= LARGEST_SHARE_OUTSIDE_THE_STEPS, shares


def test_open_loop_counts_failures_and_latency(triton, encoded):
    outcome = run_open_loop(triton.grpc_url, encoded, rate=20.0, seconds=1.5, seed=1)
    assert outcome.failed == 0
    assert outcome.sent >= 10
    assert 0 < outcome.measured.p50 <= outcome.measured.p95 <= outcome.measured.p99
    broken = run_open_loop(triton.grpc_url, [encoded[0], b"no photo"], 20.0, 1.0, seed=2)
    assert 0 < broken.failed < broken.sent
    assert "UNSUPPORTED" in broken.first_failure


@pytest.fixture(scope="module")
def perf_analyzer():
    try:
        return find_perf_analyzer()
    except BenchError as error:
        pytest.skip(str(error))


def test_perf_analyzer_loads_the_server(triton, photos, perf_analyzer, tmp_path, monkeypatch):
    # It asks no proxy for this machine's own loopback.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_grpc_proxy", "")
    inputs = tmp_path / "inputs.json"
    write_perf_inputs(photos, inputs)
    measured = run_perf_analyzer(
        perf_analyzer, triton.grpc_url, inputs, Load(concurrency=4), seconds=0.9
    )
    assert measured.throughput > 0
    assert 0 < measured.p50 <= measured.p99
    with pytest.raises(BenchError, match="perf_analyzer failed"):
        run_perf_analyzer(
            perf_analyzer, triton.grpc_url, inputs, Load(concurrency=1), 0.3, model="absent"
        )


def test_a_sweep_measures_everything_in_turn(triton, photos, perf_analyzer):
    lines = []
    result = run_sweep(
        triton.grpc_url,
        [PhotoSet("small", tuple(photos))],
        triton.metadata.spec,
        default_repository() / NETWORK_MODEL / "1" / ONNX_NAME,
        perf_analyzer,
        Sweep(concurrencies=(1, 4), rate_shares=(0.3,), seconds=0.9, repeats=1, request_size=2),
        "test",
        lines.append,
    )
    tools = [(s.tool, bool(s.load.rate)) for s in result.samples]
    assert tools == [
        ("perf_analyzer", False),
        ("perf_analyzer", False),
        ("perf_analyzer", True),
        ("sdk", True),
    ]
    # The mean, which perf_analyzer tells in a column of its own, is no percentile in disguise.
    assert all(0.2 * s.measured.p50 < s.measured.mean < 5 * s.measured.p99 for s in result.samples)
    assert all(s.stages.transport(s.measured.mean) < s.measured.mean for s in result.samples)
    assert all(s.limit > 0 and s.measured.throughput > 0 for s in result.samples)
    assert [s.load.batch for s in result.samples] == [2, 2, 1, 1]
    assert len(lines) == 4


@pytest.fixture
def waiting_bench(triton, photos, tmp_path, encoded):
    """``nima bench`` against the server, held up in its load generator, and its processes."""
    (tmp_path / "photo.jpg").write_bytes(encoded[0])
    generator = tmp_path / "perf_analyzer"
    generator.write_text('#!/bin/sh\ntouch "$TMPDIR/begun"\nexec sleep 60\n')
    generator.chmod(0o755)
    command = [sys.executable, "-m", "nima_client.cli.main", "bench", str(tmp_path / "photo.jpg")]
    bench = subprocess.Popen(
        [*command, "--url", triton.grpc_url, "--out", str(tmp_path / "out")],
        env={**os.environ, "TMPDIR": str(tmp_path), "NIMA_PERF_ANALYZER": str(generator)},
        stderr=subprocess.PIPE,
        text=True,
        # What nohup runs ignores SIGHUP, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert bench.poll() is None, bench.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = psutil.Process(bench.pid).children(recursive=True)
    yield bench, children
    for process in (bench, *children):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    bench.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_ending_a_run_from_outside_leaves_no_process(waiting_bench, tmp_path, number):
    bench, children = waiting_bench
    workers = [c for c in children if "--multiprocessing-fork" in c.cmdline()]
    assert len(workers) == len(os.sched_getaffinity(0))
    bench.send_signal(number)
    status = bench.wait(20)
    killed = number == signal.SIGKILL
    assert status == (-number if killed else 128 + number)
    assert psutil.wait_procs(workers if killed else children, timeout=5)[1] == []
    if not killed:
        assert list(tmp_path.glob("nima-*")) == []


def test_a_server_that_runs_something_else_is_not_measured(triton, photos, tmp_path, monkeypatch):
    metadata = load_metadata(default_repository())
    served = served_network(triton.grpc_url, metadata, "fp32")
    assert served == f"{metadata.name} ({metadata.checkpoint_sha256[:12]}), fp32"
    other = replace(metadata, name="other", checkpoint_sha256="f" * 64)
    with pytest.raises(BenchError, match=r"would run other \(ffffffffffff.*--model-repository"):
        served_network(triton.grpc_url, other, "fp32")
    with pytest.raises(BenchError, match="cannot be measured"):
        served_network("127.0.0.1:1", metadata, "fp32")
    # The command asks before it measures anything.
    monkeypatch.setenv("NIMA_PERF_ANALYZER", "/bin/false")
    (tmp_path / "photo.jpg").write_bytes(photos[0].data)
    arguments = [str(tmp_path), "--url", triton.grpc_url, "--precision", "int8"]
    done = CliRunner().invoke(bench_app, arguments)
    assert done.exit_code == 1
    assert "runs fp32, but the limit would run int8: give --precision fp32" in done.output


def test_shared_memory_of_other_servers_does_not_count(triton):
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "scale.py"
    spec = importlib.util.spec_from_file_location("bench_scale", path)
    scale = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scale)
    before = scale._memory(triton)["shared"]
    assert before > 0
    with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="nima_0ther_") as other:
        other.write(b"x" * 2**23)
        other.flush()
        assert scale._memory(triton)["shared"] < before + 4


def test_processes_keep_the_memory_of_a_camera_photo():
    """Page faults as multiples of the file: 0.7 to 1.3 with glibc told to keep, 3.1 without."""
    noise = np.random.default_rng(0).integers(0, 256, (2000, 3000, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=80)
    photo = buffer.getvalue()
    # Each process has its first photo before the count begins: on every machine the same few.
    with EmbeddedServer(ServerOptions(instances=2)) as server:
        with NimaClient(server.grpc_url, request_size=1) as client:
            client.score([photo] * 12)
            before = minor_faults(server)
            client.score([photo] * 24)
        faults = (minor_faults(server) - before) / 24
        server.end_processes(grace=0)
    assert faults * resource.getpagesize() / len(photo) < LARGEST_FAULTS_TO_FILE
