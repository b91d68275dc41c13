"""Command lines of the scripts of benchmarks/: what cannot be meant is told at once."""

from __future__ import annotations

import pytest
from bench_scripts import SCRIPTS, run_script


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
        ("variants.py", ["--photos", "SMALL", "--variants", "int8,int8"], "int8 is named twice"),
        ("request_size.py", ["--photos", "SMALL", "--sizes", "33"], "32 photos at most"),
        ("peers/compare.py", ["--photos", "SMALL", "--peers", "x"], "no peer 'x': there are"),
        ("peers/compare.py", ["--photos", "SMALL", "--concurrency", ""], "'' is no whole number"),
        ("jpeg_scale.py", ["SMALL", "--oversampling", "0.5"], "'0.5' is below 1"),
        ("overload.py", ["--factors"], "--factors: expected at least one"),
        ("gpu/serve.py", ["SMALL", "--loads", "32"], "'32' is no load such as 32x4"),
        ("sdk_overhead.py", ["--photos", "EMPTY"], "no JPEG files in"),
        ("capacity.py", ["/nosuch"], "/nosuch cannot be read: No such file or directory"),
        ("capacity.py", ["x.json", "--utilisation", "1.1"], "--utilisation: '1.1' is more than"),
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


@pytest.mark.parametrize("name", ["overload.py", "scale.py", "gpu/serve.py"])
def test_what_fails_on_the_way_is_told_in_a_line(name, encode, tmp_path, monkeypatch, capsys):
    """A server that does not start, or a perf_analyzer that cannot be run: no traceback."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(encode("JPEG", (320, 240)))
    (tmp_path / "perf_analyzer").touch(0o755)
    monkeypatch.setenv("NIMA_PERF_ANALYZER", str(tmp_path / "perf_analyzer"))
    photos, gone = str(tmp_path / "photos"), str(tmp_path / "gone")
    out = ["--out", str(tmp_path / "out")]
    arguments = {
        "overload.py": ["--model-repository", gone],
        "scale.py": ["--photos", photos, "--files", "1", "--model-repository", gone, *out],
        "gpu/serve.py": [photos, "--url", "127.0.0.1:1", "--no-limits", *out],
    }
    with pytest.raises(SystemExit) as ended:
        run_script(monkeypatch, name, *arguments[name])
    # What Python prints of such an end, with status 1.
    told = str(ended.value)
    assert told.startswith(f"{name}: ended early: ")
    assert "\n" not in told
    assert ("127.0.0.1:1" if name == "gpu/serve.py" else gone) in told


COUNTS = {
    "variants.py": ["--concurrency", "--rounds"],
    "bursts.py": ["--together", "--bursts"],
    "request_size.py": ["--sizes", "--count", "--rounds"],
    "scheduling.py": ["--concurrency", "--rounds", "--requests"],
    "sdk_overhead.py": ["--count", "--window", "--pairs", "--calls"],
    "scale.py": ["--rounds", "--simulated-images", "--files"],
    "jpeg_scale.py": ["--repeats"],
    "decode.py": ["--repeats"],
    "peers/compare.py": ["--concurrency", "--rounds"],
    "gpu/serve.py": ["--instances", "--rounds"],
    "gpu/variants.py": ["--rounds"],
}
NUMBERS = {
    "variants.py": ["--seconds"],
    "scale.py": ["--seconds", "--stream-seconds"],
    "overload.py": ["--seconds", "--deadline", "--factors"],
    "capacity.py": ["--price", "--utilisation", "--peak"],
    "jpeg_scale.py": ["--oversampling"],
    "peers/compare.py": ["--seconds"],
    "gpu/serve.py": ["--seconds", "--stop-timeout"],
    "gpu/variants.py": ["--seconds", "--start-timeout"],
}


PHOTOS_BY_NAME = ("variants.py", "bursts.py", "request_size.py", "scale.py", "peers/compare.py")


@pytest.mark.parametrize("name", sorted({*COUNTS, *NUMBERS}))
def test_counts_and_seconds_that_measure_nothing_are_refused(name, monkeypatch, capsys):
    wrong = [(option, value) for option in COUNTS.get(name, ()) for value in ("0", "-1", "1.5")]
    wrong += [(o, value) for o in NUMBERS.get(name, ()) for value in ("0", "-1", "inf", "nan")]
    for option, value in wrong:
        with pytest.raises(SystemExit) as ended:
            # Types are looked at before what is missing, a folder of photos above all.
            run_script(monkeypatch, name, f"{option}={value}")
        assert ended.value.code == 2
        assert f"argument {option}: '{value}' is no " in capsys.readouterr().err


def test_zero_is_none_where_it_can_be_meant(monkeypatch, capsys):
    for name, option in (("scale.py", "--simulated"), ("overload.py", "--require")):
        with pytest.raises(SystemExit) as ended:
            run_script(monkeypatch, name, f"{option}=0", "--help")
        assert ended.value.code == 0
        with pytest.raises(SystemExit):
            run_script(monkeypatch, name, f"{option}=-1")
        assert "'-1' is no number of 0 or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        "upload.py",
        "jpeg_scale.py",
        "graph_precision.py",
        "gpu_pixels.py",
        "decode.py",
        "gpu/serve.py",
        *PHOTOS_BY_NAME,
    ],
)
def test_a_folder_without_photos_is_told(name, tmp_path, monkeypatch, capsys):
    binary = tmp_path / "perf_analyzer"
    binary.touch(0o755)
    monkeypatch.setenv("NIMA_PERF_ANALYZER", str(binary))
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jpg").write_text("no photo")
    photos = ["--photos"] if name in PHOTOS_BY_NAME else []
    for folder in ("missing", "empty", "texts"):
        with pytest.raises(SystemExit) as ended:
            run_script(monkeypatch, name, *photos, str(tmp_path / folder))
        assert ended.value.code == 2
        *_, line = capsys.readouterr().err.splitlines()
        assert ": error: no " in line
        assert str(tmp_path / folder) in line or "pass a folder with" in line
