"""The scripts of benchmarks/ that carry arithmetic or a load generator of their own."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from bench_scripts import BENCHMARKS, load_script, run_script

from nima_build.bench import BenchError
from nima_build.repository import default_repository


def test_an_error_does_not_leave_the_stub_running():
    script = load_script(BENCHMARKS / "sdk_overhead.py")
    caught = []

    def fail() -> None:
        try:
            with script.server(None, stub=True) as url:
                raise RuntimeError(url)
        except RuntimeError as error:
            caught.append(str(error))

    thread = threading.Thread(target=fail, daemon=True)
    thread.start()
    thread.join(60)
    assert len(caught) == 1
    assert ":" in caught[0]


def test_what_the_sdk_costs_is_kept_with_the_machine(tmp_path, monkeypatch, capsys):
    figures = tmp_path / "figures.json"
    # No client asks a proxy for this machine's own loopback.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_grpc_proxy", "")
    few = ["--count", "3", "--pairs", "1", "--calls", "2", "--json", str(figures)]
    run_script(monkeypatch, "sdk_overhead.py", "--stub", *few)
    found = json.loads(figures.read_text())
    assert found["sync_ratio"] > 0
    assert found["machine"]["packages"]["numpy"] == np.__version__
    assert f"{found['machine']['cpu']}, " in capsys.readouterr().out


def test_growth_of_memory_is_not_rounded_away():
    script = load_script(BENCHMARKS / "scale.py")
    slopes = {"server": 2e-8, "stubs": 0.0, "client": -1e-9, "shared": 1e-6}
    samples = [
        {"scored": n, **{key: 10.0 + slope * n for key, slope in slopes.items()}}
        for n in range(500_000, 1_000_001, 100_000)
    ]
    assert script.growth(samples) == pytest.approx(slopes, rel=1e-3, abs=1e-12)


class Watched:
    """Stands for a server and for its client: so many photos are scored, and memory is read."""

    def __init__(self, *_: object, **__: object) -> None:
        self.grpc_url = "127.0.0.1:1"

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None: ...

    def score_iter(self, photos):
        return photos


def test_a_short_stream_does_not_pass_for_a_leak(monkeypatch):
    script = load_script(BENCHMARKS / "scale.py")
    for name in ("EmbeddedServer", "NimaClient"):
        monkeypatch.setattr(script, name, Watched)
    used = dict.fromkeys(("server", "stubs", "client", "shared"), 100.0)
    monkeypatch.setattr(script, "_memory", lambda _server: used)
    found = script.memory([b""], default_repository(), seconds=60.0, images=1000)
    assert [sample["scored"] for sample in found["samples"]] == [1, 1000]
    assert found["growth_mib_per_1000"] == pytest.approx(dict.fromkeys(used, 0.0), abs=1e-9)


def test_the_peak_of_a_program_is_not_that_of_its_parent():
    script = load_script(BENCHMARKS / "scale.py")
    ballast = bytearray(200 << 20)
    done, peak = script.nima("--version")
    assert (done.returncode, len(ballast)) == (0, 200 << 20)
    assert 5 < peak < 150


def test_what_was_measured_is_kept_when_the_next_fails(monkeypatch, encode, tmp_path):
    script = load_script(BENCHMARKS / "scale.py")
    (tmp_path / "a.jpg").write_bytes(encode("JPEG"))

    def fail(*_: object) -> None:
        raise RuntimeError("no server")

    monkeypatch.setattr(script, "folder", lambda *_: {"files": 3})
    monkeypatch.setattr(script, "cores", fail)
    arguments = ["--photos", str(tmp_path), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["scale.py", *arguments])
    with pytest.raises(RuntimeError, match="no server"):
        script.main()
    kept = json.loads((tmp_path / "out" / "scale.json").read_text())
    assert kept["folder"] == {"files": 3}


def test_refused_photos_do_not_hang_a_load(monkeypatch):
    script = load_script(BENCHMARKS / "scheduling.py")

    class Refusing(Watched):
        def async_infer(self, _model, _inputs, callback):
            callback(None, ValueError("corrupt"))

    monkeypatch.setattr(script, "triton_client", Refusing)

    def run() -> None:
        with pytest.raises(BenchError, match="4 of 4 requests failed: corrupt"):
            script.load("127.0.0.1:1", [b"no photo"], concurrency=2, requests=4)
        ended.set()

    ended = threading.Event()
    threading.Thread(target=run, daemon=True).start()
    assert ended.wait(10)


def test_an_overload_in_which_nothing_is_scored_makes_json():
    script = load_script(BENCHMARKS / "overload.py")
    assert script.percentile_ms([], 99) is None
    assert script.percentile_ms([0.1, 0.3], 50) == 200.0


def test_ways_to_schedule_take_turns_at_going_first(monkeypatch, encode, tmp_path):
    script = load_script(BENCHMARKS / "scheduling.py")
    (tmp_path / "a.jpg").write_bytes(encode("JPEG"))
    order = []

    def load(url, _photos, _concurrency, requests):
        if requests == 300:  # not the warm-up
            order.append(url)
        return 1.0, 1.0

    monkeypatch.setattr(script, "repository_with", lambda choice, _folder: choice)
    monkeypatch.setattr(script, "ServerOptions", lambda model_repository: model_repository)
    monkeypatch.setattr(
        script, "EmbeddedServer", lambda url: contextlib.nullcontext(SimpleNamespace(grpc_url=url))
    )
    monkeypatch.setattr(script, "load", load)
    monkeypatch.setattr(sys, "argv", ["scheduling.py", "--photos", str(tmp_path), "--rounds", "3"])
    script.main()
    a, b, c = script.CHOICES.values()
    assert order == [a, b, c, b, c, a, c, a, b]


@pytest.fixture(scope="module")
def capacity():
    return load_script(BENCHMARKS / "capacity.py")


def document(rate: float) -> dict:
    sample = {
        "photos": "small",
        "tool": "perf_analyzer",
        "load": {"concurrency": 8},
        "measured": {"throughput": rate},
    }
    return {
        "machine": {"cores": 2, "cpu": "a CPU"},
        "network": "a network",
        "photo_sets": {"small": "3 photos"},
        "samples": [sample],
    }


def test_capacity_arithmetic(capacity):
    assumed = capacity.Assumptions(price=0.05, utilisation=0.5, peak=2.0)
    # 100 a second, planned with 50; ten million a day are 115.7 a second, twice that at peak.
    assert capacity.replicas(10_000_000, 100.0, assumed) == 5 + 1
    assert capacity.replicas(1_000_000, 100.0, assumed) == 1 + 1
    text = capacity.page(document(100.0), assumed, "results.json")
    assert "50.0 x 86,400 = 4.32 million" in text
    assert "50.0 x 3,600 / 0.1 = 1.80 million" in text
    assert "**6** (12 cores, 14 dollars a day)" in text
    with pytest.raises(SystemExit, match="no sample"):
        capacity.saturated_rate(document(100.0), "large")


def test_capacity_tells_what_its_run_was(capacity):
    assumed = capacity.Assumptions(price=0.05, utilisation=0.5, peak=2.0)
    run = document(100.0) | {"complete": False, "failure": "stopped"}
    run["samples"][0]["load"]["batch"] = 4
    text = capacity.page(run, assumed, "results.json")
    assert "a network, 4 photos a request, in a run that ended early (stopped). One" in text
    for other in ({"machine": {}, "folder": {}}, {"machine": {}, "gpu": {}, "variants": {}}):
        with pytest.raises(SystemExit, match="neither a results"):
            capacity.read_run(other)
