"""Parts of the load test that need no server."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import json
import shlex
import struct
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import psutil
import pytest
from typer.testing import CliRunner

from nima_build.bench import BenchError, limit, machine, session
from nima_build.bench.cpu import CpuMeter, CpuTime
from nima_build.bench.limit import Limit, Pace
from nima_build.bench.open_loop import OpenLoopResult, due_times, percentiles
from nima_build.bench.perf_analyzer import Load, Measured, find_perf_analyzer, parse_report
from nima_build.bench.photos import Photo, PhotoSet, load_photos, perf_inputs, split_by_size
from nima_build.bench.report import rows, to_csv, to_markdown, write_report
from nima_build.bench.session import Result, Sample
from nima_build.bench.stages import StageMeter, Stages
from nima_build.cli.bench import app as bench_app
from nima_build.cli.perf_inputs import app as perf_inputs_app


@pytest.fixture
def folder(tmp_path, encode):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.jpg").write_bytes(encode("JPEG", (320, 240)))
    (tmp_path / "deep" / "b.png").write_bytes(encode("PNG", (1800, 1200)))
    (tmp_path / "notes.txt").write_text("no photo")
    return tmp_path


def test_photos_are_found_at_any_depth_and_split_by_size(folder):
    photos = load_photos([folder])
    assert [photo.name for photo in photos] == ["a.jpg", "b.png"]
    small, large = split_by_size(photos)
    assert (small.name, [p.name for p in small.photos]) == ("small", ["a.jpg"])
    assert (large.name, [p.name for p in large.photos]) == ("large", ["b.png"])
    assert "1 photo of 2.2" in large.describe()
    assert (
        "of 0.4 to 100 megapixels"
        in PhotoSet("large", (Photo("a", b"", 800, 500), Photo("b", b"", 10_000, 9_990))).describe()
    )


def test_a_video_among_the_photos_is_not_read_whole(folder):
    with (folder / "holiday.mp4").open("wb") as file:
        file.truncate(1 << 30)
    tracemalloc.start()
    try:
        assert [photo.name for photo in load_photos([folder])] == ["a.jpg", "b.png"]
        with pytest.raises(BenchError, match="has 1073741824 bytes, the limit is"):
            load_photos([folder / "holiday.mp4"])
        assert tracemalloc.get_traced_memory()[1] < 256 << 20
    finally:
        tracemalloc.stop()


def test_damaged_photos_are_left_out_of_a_load(folder):
    """The server refuses them, and perf_analyzer ends at the first request that fails."""
    whole = (folder / "a.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    assert [photo.name for photo in load_photos([folder])] == ["a.jpg", "b.png"]
    with pytest.raises(BenchError, match=r"cut\.jpg cannot be scored"):
        load_photos([folder / "cut.jpg"])


def test_a_named_file_that_is_no_photo_is_an_error(folder, tmp_path):
    with pytest.raises(BenchError, match="cannot be scored"):
        load_photos([folder / "notes.txt"])
    with pytest.raises(BenchError, match="no such file"):
        load_photos([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(BenchError, match="no photos found"):
        load_photos([tmp_path / "empty"])


def test_perf_inputs_frame_the_bytes_with_their_length(folder):
    photos = load_photos([folder])
    for row, photo in zip(perf_inputs(photos)["data"], photos):
        framed = base64.b64decode(row["IMAGE"]["b64"])
        (length,) = struct.unpack("<I", framed[:4])
        assert framed[4:] == photo.data
        assert length == len(photo.data)


def test_perf_inputs_command(folder, tmp_path):
    output = tmp_path / "inputs" / "perf.json"
    done = CliRunner().invoke(perf_inputs_app, [str(folder), "-o", str(output), "--limit", "1"])
    assert done.exit_code == 0, done.output
    assert len(json.loads(output.read_text())["data"]) == 1
    assert "--shape IMAGE:1" in done.output
    spaced = tmp_path / "my photos.json"
    done = CliRunner().invoke(perf_inputs_app, [str(folder), "-o", str(spaced)])
    assert str(spaced) in shlex.split(done.output), "the command it prints can be run"
    assert CliRunner().invoke(perf_inputs_app, [str(tmp_path / "no")]).exit_code == 1


def test_a_load_is_closed_or_open():
    assert Load(concurrency=8).label == "8 in flight"
    assert Load(rate=12.5).label == "12.5 a second"
    assert Load(concurrency=8, batch=4).label == "8 in flight, of 4 images"
    assert Load.parse("32x4") == Load(concurrency=4, batch=32)
    for wrong in ({}, {"concurrency": 1, "rate": 1.0}):
        with pytest.raises(ValueError, match="concurrency or a rate"):
            Load(**wrong)
    for wrong in ("32", "x4", "0x4", "32x", "a x4", "32x4x4"):
        with pytest.raises(ValueError, match="no load such as 32x4"):
            Load.parse(wrong)


def test_report_of_perf_analyzer_is_read():
    text = (
        "Concurrency,Inferences/Second,Client Send,p50 latency,p90 latency,p95 latency,p99 latency,"
        "Avg latency\n1,10,5,100000,1,1,1,1\n8,126.5,7,63000,70000,71500,78000,64000\n"
    )
    assert parse_report(text) == Measured(126.5, 63.0, 71.5, 78.0, 64.0)
    with pytest.raises(BenchError, match="cannot be read"):
        parse_report("Concurrency\n")
    short = text.rpartition(",")[0] + "\n"
    for wrong in (short, text.replace("126.5", "0"), text.replace("78000", "inf")):
        with pytest.raises(BenchError, match="cannot be"):
            parse_report(wrong)


def test_a_missing_perf_analyzer_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("NIMA_PERF_ANALYZER", str(tmp_path / "absent"))
    with pytest.raises(BenchError, match="cannot be executed"):
        find_perf_analyzer()


def test_due_times_are_poisson_at_the_rate():
    times = due_times(rate=200.0, seconds=50.0, seed=3)
    assert times == sorted(times) == due_times(200.0, 50.0, 3)
    assert len(times) == pytest.approx(10_000, rel=0.05)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    # Of exponential gaps 1/e are longer than the mean.
    assert sum(gap > 1 / 200 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.03)
    assert len(due_times(rate=0.001, seconds=1.0, seed=0)) == 1


def test_percentiles_in_milliseconds():
    assert percentiles([k / 1000 for k in range(1, 102)]) == pytest.approx((51.0, 96.0, 100.0))
    assert percentiles([0.5]) == (500.0, 500.0, 500.0)


def sample(repeat: int, throughput: float, limit: float, tool: str = "perf_analyzer") -> Sample:
    measured = Measured(throughput, 10.0 + repeat, 20.0, (30.0, 44.0, 12.0)[repeat], 12.0 + repeat)
    stages = Stages(requests=50, queue=1.0, decode=2.0, network=4.0, server=8.0)
    cpu = CpuTime(in_process=8.0, server=9.0, generator=1.0)
    return Sample("small", tool, Load(concurrency=8), repeat, measured, limit, stages, 0, cpu)


@pytest.fixture
def result():
    machine = {
        "cpu": "a CPU",
        "cores": 2,
        "memory_gib": 8.0,
        "python": "3.11",
        "load_average_before": 0.1,
    }
    limits = [Limit(300.0, 150.0, 100.0, 10.0), Limit(320.0, 160.0, 110.0, 9.0)]
    samples = [sample(0, 90.0, 100.0), sample(1, 104.5, 110.0), sample(2, 57.0, 60.0)]
    return Result(machine, "a network", {"small": "3 photos"}, {"small": limits}, samples)


def test_shares_are_medians_of_the_ratios_not_ratios_of_the_medians(result):
    (row,) = rows(result, "small", "perf_analyzer")
    assert row.throughput == 90.0
    assert (row.low, row.high) == (57.0, 104.5)
    assert row.share == pytest.approx(0.95)
    # 3, 4 and 1: the median of the ratios is not the ratio of the medians (30 / 11).
    assert row.tail == pytest.approx(3.0)
    # Means less means, 4, 5 and 6.
    assert row.transport == pytest.approx(5.0)
    assert rows(result, "small", "sdk") == []


def test_reports_hold_every_sample_and_the_limit(result, tmp_path):
    table = list(csv.DictReader(io.StringIO(to_csv(result))))
    assert [float(line["images_per_second"]) for line in table] == [90.0, 104.5, 57.0]
    assert "**105.0 images/s**" in to_markdown(result)
    assert "| 8 in flight | 90.0 (57.0–104.5) | 95% |" in to_markdown(result)
    assert "| 8 in flight | 8.00 | 9.00 | 1.00 | 80% | 89% |" in to_markdown(result)
    assert float(table[0]["cpu_share"]) == pytest.approx(0.8)
    assert float(table[0]["cpu_server_share"]) == pytest.approx(8 / 9, rel=1e-3)
    assert "| 20.0 | 30.0 | 3.00 |" in to_markdown(result)
    written = write_report(result, tmp_path / "out")
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert document["samples"][1]["share_of_limit"] == pytest.approx(0.95)
    assert {"results.json", "results.csv", "summary.md"} <= {path.name for path in written}


def test_transport_is_told_when_it_is_below_zero():
    stages = Stages(requests=5, queue=0.0, decode=2.0, network=4.0, server=8.0)
    assert stages.transport(7.5) == pytest.approx(-0.5)


class NoMeter:
    """Stands for what reads the server's statistics."""

    def __init__(self, url: str) -> None:
        self.lap = self.close = lambda: None


class NoLimits(NoMeter):
    """Stands for the processes that measure the limit."""

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> NoLimits:
        return self

    def __exit__(self, *_: object) -> None: ...

    def measure(self, _seconds: float) -> Limit:
        return Limit(300.0, 150.0, 100.0, 10.0)

    def pace(self, *_: object) -> Pace:
        return Pace(100.0, 10.0)


@pytest.fixture
def sweep(monkeypatch, folder):
    """Runs two rounds of one load over small and large photos; the load generator fails once."""
    monkeypatch.setattr(session, "StageMeter", NoMeter)
    monkeypatch.setattr(session, "LimitMeter", NoLimits)

    def run(fail_at: int, error: BaseException | None = None):
        calls = itertools.count()

        def load(*_: object) -> Measured:
            if next(calls) == fail_at:
                raise error or BenchError("perf_analyzer failed\nas told")
            return Measured(90.0, 10.0, 20.0, 30.0, 11.0)

        monkeypatch.setattr(session, "run_perf_analyzer", load)
        return session.run_sweep(
            *("127.0.0.1:1", split_by_size(load_photos([folder])), None, "", ""),
            session.Sweep(concurrencies=(1,), rate_shares=(), repeats=2),
            *("a network", lambda _line: None),
        )

    return run


def test_a_measurement_is_as_long_as_its_tail_needs():
    sweep = session.Sweep(seconds=2.0)
    assert sweep.seconds_for(Load(concurrency=8), limit=200.0) == 2.0
    assert sweep.seconds_for(Load(concurrency=8), limit=60.0) == 5.0
    assert sweep.seconds_for(Load(concurrency=64), limit=128.0) == 4.0
    assert sweep.seconds_for(Load(concurrency=8, batch=8), limit=128.0) == 4.0
    assert sweep.seconds_for(Load(rate=75.0), limit=1000.0) == 4.0
    assert sweep.seconds_for(Load(rate=1.0), limit=1000.0) == 6.0


def test_a_failure_leaves_what_was_measured_and_is_told(sweep, tmp_path):
    # Each set: one call to warm up, one a round.
    assert (sweep(99).failure, len(sweep(99).samples)) == ("", 4)
    for fail_at, samples, sets in (
        (2, 1, ["small"]),
        (3, 2, ["small"]),
        (5, 3, ["small", "large"]),
    ):
        result = sweep(fail_at)
        assert len(result.samples) == samples
        assert list(result.sets) == list(result.limits) == sets
        assert result.failure == "perf_analyzer failed as told"
        write_report(result, tmp_path)
        assert "**Incomplete**: ended early by a failure (perf_analyzer failed as told)" in (
            (tmp_path / "summary.md").read_text()
        )
        assert json.loads((tmp_path / "results.json").read_text())["complete"] is False
    for nothing in (0, 1):
        with pytest.raises(BenchError, match="as told"):
            sweep(nothing)


def test_ctrl_c_keeps_what_was_measured(sweep):
    result = sweep(3, KeyboardInterrupt())
    assert (result.failure, len(result.samples), list(result.sets)) == ("stopped", 2, ["small"])
    with pytest.raises(KeyboardInterrupt):
        sweep(1, KeyboardInterrupt())


def test_no_plot_of_an_earlier_run_stays_beside_the_tables(result, tmp_path):
    for name in ("small.png", "large.png"):
        (tmp_path / name).write_text("earlier")
    written = write_report(result, tmp_path)
    assert not (tmp_path / "large.png").exists()
    assert set(tmp_path.iterdir()) == set(written)


def test_the_limit_and_every_stage_can_be_seen_in_a_plot(result, tmp_path, monkeypatch):
    plots = pytest.importorskip("nima_build.bench.plots")
    figures = []
    monkeypatch.setattr(plots.plt, "close", figures.append)
    # The client's mean below the server's: transport is less than nothing.
    result.samples = [replace(s, stages=replace(s.stages, server=20.0)) for s in result.samples]
    plots.write_plots(result, tmp_path)
    (figure,) = figures
    throughput, _, stages = figure.axes
    assert throughput.get_ylim()[1] > result.median_limit("small").combined * 1.02
    assert [bar.get_height() for bar in stages.patches] == [2.0, 4.0, 1.0, 0.0]
    monkeypatch.undo()
    plots.plt.close(figure)


def test_shares_of_a_slow_machines_limit_are_kept(monkeypatch, folder):
    monkeypatch.setattr(session, "StageMeter", NoMeter)
    monkeypatch.setattr(session, "LimitMeter", NoLimits)
    monkeypatch.setattr(NoLimits, "measure", lambda *_: Limit(3.0, 1.5, 1.234, 10.0))
    monkeypatch.setattr(session, "run_perf_analyzer", lambda *_: Measured(1.0, 1.0, 2.0, 3.0, 1.0))
    outcome = OpenLoopResult(Measured(1.0, 1.0, 2.0, 3.0, 1.0), 3, 1, "TIMEOUT: too late")
    monkeypatch.setattr(session, "run_open_loop", lambda *_, **__: outcome)
    lines: list[str] = []
    result = session.run_sweep(
        *("127.0.0.1:1", split_by_size(load_photos([folder]))[:1], None, "", ""),
        session.Sweep(concurrencies=(), rate_shares=(0.01, 0.3, 0.3001), repeats=1),
        *("a network", lines.append),
    )
    assert [sample.load.rate for sample in result.samples] == [0.0123, 0.37] * 2
    assert lines[-1].endswith("ms; 1 of 3 failed: TIMEOUT: too late")


def test_cpu_time_is_that_of_the_server_and_of_ended_children():
    busy = "import time\nwhile time.process_time() < {}: pass\n{}"
    server = subprocess.Popen(
        [sys.executable, "-c", busy.format(0.3, "print('done', flush=True); input()")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    meter = CpuMeter(lambda: [server.pid])
    assert server.stdout.readline() == b"done\n"
    subprocess.run([sys.executable, "-c", busy.format(0.2, "")], check=True)
    server_seconds, child_seconds = meter.lap()
    assert 0.15 <= server_seconds <= 2.0
    assert 0.15 <= child_seconds <= 2.0
    server.communicate(b"\n")
    assert CpuMeter(lambda: [server.pid]).lap()[0] == 0


def test_a_worker_that_ends_takes_no_cpu_time_away_from_its_server():
    worker = "import time\nwhile time.process_time() < 0.3: pass\nprint(1, flush=True); input()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}]); "
    server = subprocess.Popen(
        [sys.executable, "-c", code + "print(2, flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.stdout.readline() == b"1\n"
    (child,) = psutil.Process(server.pid).children()
    meter = CpuMeter(lambda: [server.pid, child.pid])
    server.stdin.write(b"\n")
    server.stdin.flush()
    assert server.stdout.readline() == b"2\n"
    assert abs(meter.lap()[0]) < 0.2
    server.communicate(b"\n")


def test_a_server_that_was_restarted_has_no_stages(monkeypatch):
    counts = iter([{"nima": (100, 5_000, 0, 0)}, {"nima": (30, 1_500, 0, 0)}])
    monkeypatch.setattr(StageMeter, "_read", lambda _self: next(counts))
    meter = StageMeter("127.0.0.1:1")
    assert meter.lap() is None
    meter.close()


def test_a_cpu_quota_counts_as_cores(monkeypatch):
    """In a container with a quota: as many processes as cores may be used, as the server has."""
    monkeypatch.setattr(limit, "available_cores", lambda: 1)
    monkeypatch.setattr(machine, "available_cores", lambda: 1)
    assert len(limit.LimitMeter([b""], None, "")._cores) == 1
    assert machine.describe_machine()["cores"] == 1


def test_a_server_that_is_not_there_and_an_empty_sweep_are_told(folder):
    with pytest.raises(BenchError, match=r"no Triton answers at 127\.0\.0\.1:1"):
        StageMeter("127.0.0.1:1")
    done = CliRunner().invoke(bench_app, [str(folder), "--concurrency", "", "--rate-shares", ""])
    assert done.exit_code == 2
    assert "nothing to measure" in done.output


def test_a_mistake_is_told_before_anything_is_measured(folder, tmp_path, monkeypatch):
    binary = tmp_path / "perf_analyzer"
    binary.touch(0o755)
    monkeypatch.setenv("NIMA_PERF_ANALYZER", str(binary))
    (tmp_path / "file").touch()
    for arguments, status, message in (
        (["-o", tmp_path / "file"], 1, "file is not a folder"),
        (["-o", tmp_path / "out", "--url", "nowhere"], 1, "has no port"),
        (["-o", tmp_path / "out", "--url", "grpcs://127.0.0.1:1"], 1, "TLS cannot be measured"),
        (["-o", tmp_path / "out", "--url", "grpc://127.0.0.1:1"], 1, "bench: 127.0.0.1:1 cannot"),
        (["-o", tmp_path / "out", "--rate-shares", "nan"], 2, "positive and finite"),
        (["-o", tmp_path / "out", "--rate-shares", "0.5,0_9"], 2, "is no list of numbers"),
        (["-o", tmp_path / "out", "--concurrency", "1,3_2"], 2, "is no list of numbers"),
        (["--url", "127.0.0.1:1", "--instances", "4"], 2, "--instances is for the server"),
        (["--request-size", "4", "--concurrency", ""], 2, "is for closed loops"),
        (["--seconds", "inf"], 2, "--seconds"),
    ):
        done = CliRunner().invoke(bench_app, [str(folder), *map(str, arguments)])
        assert done.exit_code == status, done.output
        assert message in done.output
