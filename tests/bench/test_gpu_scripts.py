"""The scripts of benchmarks/gpu, as far as they can be tested without a GPU."""

from __future__ import annotations

import argparse
import io
import itertools
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from bench_scripts import BENCHMARKS, load_script
from PIL import Image

from nima_build.bench import BenchError
from nima_build.bench.perf_analyzer import Measured
from nima_build.bench.stages import Stages
from nima_build.repository import config_path, default_repository, read_config

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


def test_capacity_of_a_gpu_takes_the_best_load():
    capacity = load_script(BENCHMARKS / "capacity.py")
    measured = capacity.read_run(GPU_RUN)
    assert measured.rates == {"AVA": 3200}
    page = capacity.page(GPU_RUN, capacity.Assumptions(0.25, 0.5, 2.0), "run.json")
    assert "3200.0 x 0.5 = 1600.0/s" in page
    assert "1600.0 x 3,600 / 4 = 1.44 million" in page
    assert "ended early" not in measured.where
    assert capacity.read_run({**GPU_RUN, "complete": False}).where.endswith("that ended early")
    with pytest.raises(SystemExit, match="no load"):
        capacity.read_run({**GPU_RUN, "loads": [{"rounds": []}]})


def test_the_gpu_run_is_told_beside_the_limit_of_its_decoder():
    serve = load_script(BENCHMARKS / "gpu" / "serve.py")
    table = serve.to_markdown(GPU_RUN)
    assert "| decode, by processes | 2,000 | 4,000 | 8,000 | 12,000 |" in table
    assert "| 32 | 8 | 3,200 | 0.27 | 3.0 | 5.0 |" in table
    assert "Incomplete" not in table


class NoMeter:
    """Stands for what reads the server's statistics: the decoder takes 4, 5, 9, … ms."""

    def __init__(self, _url: str) -> None:
        self._times = itertools.cycle([None, 4.0, None, 5.0, None, 9.0])

    def lap(self) -> Stages | None:
        took = next(self._times)
        return None if took is None else Stages(10, 0.5, took, 2.0, took + 3.0)

    def close(self) -> None: ...


@pytest.fixture
def gpu_run(monkeypatch, encode, tmp_path):
    """Runs ``serve.py`` for three rounds of one load; the load generator may fail."""
    script = load_script(BENCHMARKS / "gpu" / "serve.py")
    (tmp_path / "a.jpg").write_bytes(encode("JPEG"))

    def run(fail_at: int = -1) -> tuple[dict, str]:
        calls = itertools.count()

        def load(*_: object) -> Measured:
            if next(calls) == fail_at:
                raise BenchError("perf_analyzer failed")
            return Measured(100.0, 10.0, 20.0, 30.0, 11.0)

        monkeypatch.setattr(script, "run_perf_analyzer", load)
        monkeypatch.setattr(script, "find_perf_analyzer", lambda: Path("perf_analyzer"))
        monkeypatch.setattr(script, "StageMeter", NoMeter)
        monkeypatch.setattr(script, "judge", lambda *_: {"mean_difference": 0.001})
        options = ["--out", str(tmp_path), "--url", "127.0.0.1:1", "--no-limits"]
        arguments = [str(tmp_path / "a.jpg"), *options, "--loads", "4x2", "--rounds", "3"]
        monkeypatch.setattr(sys, "argv", ["serve.py", *arguments])
        if fail_at < 0:
            script.main()
        else:
            with pytest.raises(BenchError, match="failed"):
                script.main()
        report = json.loads((tmp_path / "serve.json").read_text())
        return report, (tmp_path / "serve.md").read_text()

    return run


def test_a_gpu_run_keeps_the_stages_of_every_round(gpu_run):
    report, table = gpu_run()
    (load,) = report["loads"]
    assert [one["stages"]["decode"] for one in load["rounds"]] == [4.0, 5.0, 9.0]
    assert report["complete"] is True
    # Medians; no limit was measured, so that there is no share of it.
    assert "| 4 | 2 | 100 |  | 10.0 | 30.0 | 0.5 | 5.0 | 2.0 |" in table
    assert "Incomplete" not in table


def test_a_gpu_run_that_fails_has_the_table_of_what_it_measured(gpu_run):
    report, table = gpu_run(fail_at=1)
    assert report["complete"] is False
    assert len(report["loads"][0]["rounds"]) == 1
    assert table.startswith("**Incomplete**")
    assert "| 4 | 2 | 100 |  | 10.0 | 30.0 | 0.5 | 4.0 | 2.0 |" in table


def test_a_limit_whose_process_fails_is_told():
    # It cannot be imported by its name in another process, and so ends at once.
    script = load_script(BENCHMARKS / "gpu" / "serve.py")
    with pytest.raises(BenchError, match="measures the limit of decode failed"):
        script.limit("decode", 1, [b"photo"], None, 0.1)


def test_pixels_of_files_that_were_not_decoded_are_no_match(monkeypatch, encode):
    decode = load_script(BENCHMARKS / "gpu" / "decode.py")
    files = [encode("PNG", (8, 8)), encode("PNG", (8, 8), seed=1)]
    exact = SimpleNamespace(cpu=lambda: Image.open(io.BytesIO(files[0])).convert("RGB"))
    monkeypatch.setattr(decode, "open_decoder", lambda *_: lambda _files: [exact, None])
    assert decode.pixels(files, ()) == {"max": 0, "mean": 0.0, "undecoded": 1}
    monkeypatch.setattr(decode, "open_decoder", lambda *_: lambda _files: [None, None])
    with pytest.raises(RuntimeError, match="none of 2 files was decoded"):
        decode.pixels(files, ())


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
    # The word "error" in a reason is no figure, and a reason is told beside the figures before it.
    reason = "RuntimeError: CUDA error: out of memory"
    report["engines"]["one"] = {"1": rows["1"], "reason": reason}
    assert f"| one | 10 |  |  |  | 0.0010; {reason} |" in network.to_markdown(report)


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
        "rounds": 3,
        "failed": {},
        "variants": {
            "shipped": {"32x4": rounds(1000, 2000, 3000)},
            "decoders=2": {"32x4": rounds(1500, 2400, 4500)},
        },
    }
    table = variants.to_markdown(report)
    assert "without NVIDIA MPS" in table
    assert "| shipped | 2,000 (1.00) · 3.0 / 5.0 |" in table
    assert "| decoders=2 | 2,400 (1.50) · 3.0 / 5.0 |" in table
    assert "**" not in table
    # One that ended in the third round: only those that were over for all are told.
    report["variants"]["decoders=2"]["32x4"].pop()
    report["failed"] = {"networks=3": "out of memory"}
    table = variants.to_markdown(report)
    assert "**Not started** networks=3: out of memory\n\n" in table
    assert "**Incomplete**: 2 of 3 rounds were over.\n\n" in table
    assert "| shipped | 1,500 (1.00) · 3.0 / 5.0 |" in table
    assert "| decoders=2 | 1,950 (1.35) · 3.0 / 5.0 |" in table


def test_variants_on_a_gpu_take_turns_at_going_first(monkeypatch, tmp_path):
    variants = load_script(BENCHMARKS / "gpu" / "variants.py")
    monkeypatch.setattr(variants, "StageMeter", NoMeter)
    loaded = []

    def load(_binary: Path, url: str, *_: object) -> Measured:
        loaded.append(url)
        return Measured(100.0, 10.0, 20.0, 30.0, 11.0)

    monkeypatch.setattr(variants, "run_perf_analyzer", load)
    kept = []
    variants.measure(
        {"a": "1", "b": "2"}, Path("perf_analyzer"), tmp_path, ["32x4"], 2, 0.1,
        lambda name, load, row: kept.append((name, load, row["stages"]["decode"])),
    )  # fmt: skip
    assert loaded == ["1", "2", "2", "1"]
    assert kept[0] == ("a", "32x4", 4.0)


def test_photos_are_brought_to_the_size_of_ava(encode):
    serve = load_script(BENCHMARKS / "gpu" / "serve.py")
    from nima_build.bench.photos import Photo

    for size, wanted in (((900, 300), (500, 375)), ((300, 900), (375, 500))):
        photo = serve.ava_sized(Photo("a", encode("PNG", size), *size))
        assert (photo.width, photo.height) == wanted
        assert photo.data[:2] == b"\xff\xd8"
