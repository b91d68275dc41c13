"""The scripts of benchmarks/ that carry arithmetic or a load generator of their own."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import runpy
import shutil
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nima_build.bench import BenchError
from nima_build.repository import config_path, default_repository, read_config

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def load_script(path: Path):
    """Import a script by its path."""
    spec = importlib.util.spec_from_file_location(f"bench_script_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SCRIPTS = sorted(
    str(path.relative_to(BENCHMARKS))
    for path in BENCHMARKS.glob("**/*.py")
    if "ArgumentParser(" in path.read_text()
)


def run_script(monkeypatch, name: str, *arguments: str) -> None:
    """Run a script as ``python benchmarks/NAME`` does, in this process: its imports are shared."""
    path = BENCHMARKS / name
    known = set(sys.modules)
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        # Two folders have a ``variants``: none may be found in the place of the other.
        for module in set(sys.modules) - known:
            if BENCHMARKS in Path(getattr(sys.modules[module], "__file__", None) or "/").parents:
                del sys.modules[module]


def test_every_script_is_there():
    assert {"decode.py", "variants.py", "peers/compare.py", "gpu/serve.py"} <= set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_starts(name, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        run_script(monkeypatch, name, "--help")
    assert ended.value.code == 0
    assert "usage: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        (
            "variants.py",
            ["--photos", "SMALL", "--variants", "nosuch"],
            "no variant 'nosuch'",
        ),
        ("bursts.py", ["--photos", "SMALL", "--variants", "shipped,x"], "no variant 'x': there"),
        ("variants.py", ["--photos", "SMALL", "--set", "large"], "no large photos"),
        ("request_size.py", ["--photos", "SMALL", "--set", "large"], "no large photos"),
        ("bursts.py", ["--photos", "LARGE"], "no small photos"),
        ("scale.py", ["--photos", "/nosuch"], "no such file or folder: /nosuch"),
        ("sdk_overhead.py", ["--pairs", "0"], "--pairs must be 1 or more"),
        ("sdk_overhead.py", ["--photos", "EMPTY"], "no JPEG files in"),
        ("capacity.py", ["/nosuch"], "/nosuch cannot be read"),
        ("capacity.py", ["x.json", "--price", "0"], "argument --price: invalid"),
        ("capacity.py", ["x.json", "--utilisation", "1.1"], "argument --utilisation: invalid"),
    ],
)
def test_arguments_that_cannot_be_meant_are_told(
    name, arguments, told, encode, tmp_path, monkeypatch, capsys
):
    for folder, size in (("SMALL", (320, 240)), ("LARGE", (1800, 1200))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jpg").write_bytes(encode("JPEG", size))
    (tmp_path / "EMPTY").mkdir()
    known = {folder: str(tmp_path / folder) for folder in ("SMALL", "LARGE", "EMPTY")}
    with pytest.raises(SystemExit) as ended:
        run_script(monkeypatch, name, *(known.get(each, each) for each in arguments))
    assert ended.value.code == 2
    assert told in " ".join(capsys.readouterr().err.split())


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


def test_a_gpu_run_that_measures_nothing_leaves_the_last_report(monkeypatch, encode, tmp_path):
    script = load_script(BENCHMARKS / "gpu" / "serve.py")
    (tmp_path / "a.jpg").write_bytes(encode("JPEG"))
    last = tmp_path / "serve.json"
    last.write_text("the last one")

    def judge(*_: object) -> None:
        raise RuntimeError("no server")

    monkeypatch.setattr(script, "find_perf_analyzer", lambda: Path("perf_analyzer"))
    monkeypatch.setattr(script, "judge", judge)
    options = ["--out", str(tmp_path), "--url", "127.0.0.1:1", "--no-limits"]
    monkeypatch.setattr(sys, "argv", ["serve.py", str(tmp_path / "a.jpg"), *options])
    with pytest.raises(RuntimeError, match="no server"):
        script.main()
    assert last.read_text() == "the last one"


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


GPU_RUN = {
    "gpu": {"name": "NVIDIA Example", "driver": "1.2"},
    "machine": {"cores": 16, "cpu": "Example CPU"},
    "photos": "3 photos",
    "parity": {"mean_difference": 0.0041},
    "limits": {
        f"{stage} {processes}": [1000.0 * processes, 3000.0 * processes, 2000.0 * processes]
        for stage in ("decode", "preprocess")
        for processes in (1, 2, 4, 6)
    },
    "loads": [
        {
            "batch": batch,
            "concurrency": 8,
            "rounds": [{"throughput": batch * n, "p50": 3.0, "p99": 5.0} for n in (90, 110, 100)],
        }
        for batch in (1, 32)
    ],
}


def test_capacity_of_a_gpu_takes_the_best_load(capacity):
    measured = capacity.read_run(GPU_RUN)
    assert measured.rates == {"AVA": 3200}
    page = capacity.page(GPU_RUN, capacity.Assumptions(0.25, 0.5, 2.0), "run.json")
    assert "3200.0 x 0.5 = 1600.0/s" in page
    assert "1600.0 x 3,600 / 4 = 1.44 million" in page
    with pytest.raises(SystemExit, match="no load"):
        capacity.read_run({**GPU_RUN, "loads": [{"rounds": []}]})


def test_the_gpu_run_is_told_beside_the_limit_of_its_decoder():
    serve = load_script(BENCHMARKS / "gpu" / "serve.py")
    table = serve.to_markdown(GPU_RUN)
    assert "| decode, by processes | 2,000 | 4,000 | 8,000 | 12,000 |" in table
    assert "| 32 | 8 | 3,200 | 0.27 | 3.0 | 5.0 |" in table


def test_engines_of_a_gpu_are_told_with_what_was_not_there():
    network = load_script(BENCHMARKS / "gpu" / "network.py")
    rows = {str(batch): {"rate": 10.0 * batch, "error": 0.001} for batch in network.BATCHES}
    report = {
        "gpu": GPU_RUN["gpu"],
        "torch": "2.0",
        "engines": {"one": rows, "other": {"reason": "RuntimeError: not here"}},
    }
    table = network.to_markdown(report)
    assert "| one | 10 | 80 | 320 | 1,280 | 0.0010 |" in table
    assert "| other |  |  |  |  | RuntimeError: not here |" in table


def test_variants_on_a_gpu_change_what_they_name(tmp_path):
    variants = load_script(BENCHMARKS / "gpu" / "variants.py")
    copy = shutil.copytree(default_repository(), tmp_path / "copy")
    variants.apply(copy, "shipped")
    variants.apply(copy, "decoders=3,networks=1,batch=128,host_below=64")
    decode, network = (
        read_config(config_path(copy, model, "embedded-gpu"))
        for model in ("nima_preprocess", "nima_network")
    )
    assert (decode.instance_group[0].count, network.instance_group[0].count) == (3, 1)
    assert (decode.max_batch_size, network.max_batch_size) == (128, 128)
    assert list(network.dynamic_batching.preferred_batch_size) == [8, 16, 32, 128]
    assert decode.parameters["host_below"].string_value == "64"
    for wrong in ("decoders", "decoders=0", "threads=2", "batch=x", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="give shipped, or NAME=COUNT"):
            variants.parse(wrong)


def test_variants_on_a_gpu_are_told_as_ratios_of_the_rounds():
    variants = load_script(BENCHMARKS / "gpu" / "variants.py")

    def rounds(*throughputs):
        return [{"throughput": t, "p50": 3.0, "p99": 5.0} for t in throughputs]

    report = {
        "gpu": GPU_RUN["gpu"],
        "mps": False,
        "variants": {
            "shipped": {"32x4": rounds(1000, 2000, 3000)},
            "decoders=2": {"32x4": rounds(1500, 2400, 4500)},
        },
    }
    table = variants.to_markdown(report)
    assert "without NVIDIA MPS" in table
    assert "| shipped | 2,000 (1.00) · 3.0 / 5.0 |" in table
    assert "| decoders=2 | 2,400 (1.50) · 3.0 / 5.0 |" in table


def test_photos_are_brought_to_the_size_of_ava(encode):
    serve = load_script(BENCHMARKS / "gpu" / "serve.py")
    from nima_build.bench.photos import Photo

    for size, wanted in (((900, 300), (500, 375)), ((300, 900), (375, 500))):
        photo = serve.ava_sized(Photo("a", encode("PNG", size), *size))
        assert (photo.width, photo.height) == wanted
        assert photo.data[:2] == b"\xff\xd8"
