"""Standard output as it may be: closed, not UTF-8, read by nobody; and what is read back."""

from __future__ import annotations

import csv
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("typer", reason="the commands need the extra cli")

from nima_client.library.files import read_rows, write_rows
from nima_client.library.rows import Row

Photo = Callable[..., bytes]
NIMA = [sys.executable, "-m", "nima_client.cli.main"]
LATIN = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}


def row(file: str, rating: int) -> Row:
    return Row(file, float(rating), 0.0, None, tuple(float(r == rating) for r in range(1, 11)))


@pytest.fixture
def two_sets(tmp_path: Path) -> list[str]:
    paths = []
    for number, name in enumerate(("a.csv", "b.csv")):
        rows = [row(f"p/{'long' * 60}-{n}-日本.jpg", 1 + n + number) for n in range(3)]
        write_rows(rows, tmp_path / name, "csv")
        paths.append(str(tmp_path / name))
    return paths


@pytest.mark.parametrize("form", ["csv", "jsonl", "json", "table"])
def test_an_output_that_is_not_utf8_loses_no_scores(folder: Path, url: str, form: str) -> None:
    (folder / "1.jpg").rename(folder / "日本é.jpg")
    done = subprocess.run(
        [*NIMA, "score", str(folder), "--url", url, "-f", form],
        capture_output=True, env=LATIN, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode("latin-1")
    assert "10.jpg" in text
    assert "\\u65e5\\u672c" in text
    if form == "csv":
        names = [Path(r["file"]).name for r in csv.DictReader(io.StringIO(text))]
        assert names == ["2.jpg", "10.jpg", "\\u65e5\\u672cé.jpg", "A.JPEG"]


def test_piped_comparisons_keep_the_names_whole(two_sets: list[str]) -> None:
    pytest.importorskip("scipy", reason="nima compare needs the extra report")
    utf8 = {**os.environ, "PYTHONIOENCODING": "utf-8", "COLUMNS": "60"}
    done = subprocess.run(
        [*NIMA, "compare", *two_sets], capture_output=True, env=utf8, timeout=60, check=True
    )
    lines = [line for line in done.stdout.decode().splitlines() if "long" in line]
    assert [line.split()[0] for line in lines] == [f"{'long' * 60}-{n}-日本.jpg" for n in range(3)]
    latin = subprocess.run(
        [*NIMA, "compare", *two_sets], capture_output=True, env=LATIN, timeout=60, check=True
    )
    assert b"-0-\\u65e5\\u672c.jpg" in latin.stdout


@pytest.mark.parametrize("form", ["table", "csv"])
def test_forced_colours_neither_cut_names_nor_move_bars(folder: Path, url: str, form: str) -> None:
    name = f"{'long' * 40}.jpg"
    (folder / "1.jpg").rename(folder / name)
    forced = {**os.environ, "PYTHONIOENCODING": "utf-8", "FORCE_COLOR": "1", "COLUMNS": "80"}
    done = subprocess.run(
        [*NIMA, "score", str(folder), "--url", url, "-f", form],
        capture_output=True, env=forced, timeout=60, check=True,
    )  # fmt: skip
    assert name in done.stdout.decode()
    assert b"4 photos scored" in done.stderr
    # Escapes that end in m are colours; others move the cursor, and hide it.
    assert not re.search(rb"\x1b\[[0-9;?]*[^0-9;?m]|\r", done.stderr)


TO_THE_SCREEN = pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["score", "--help"], ["compare", "-f", "json"], ["compare"]],
)


@TO_THE_SCREEN
def test_a_reader_that_left_before_the_first_line(
    arguments: list[str], two_sets: list[str]
) -> None:
    if arguments[0] == "compare":
        pytest.importorskip("scipy", reason="nima compare needs the extra report")
        arguments = [*arguments, *two_sets]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*NIMA, *arguments], stdout=writing, stderr=subprocess.PIPE, timeout=60, check=False
    )
    os.close(writing)
    assert done.stderr == b""
    assert done.returncode == 141


@TO_THE_SCREEN
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_without_a_place_left_is_told(
    arguments: list[str], unbuffered: str, two_sets: list[str]
) -> None:
    if arguments[0] == "compare":
        pytest.importorskip("scipy", reason="nima compare needs the extra report")
        arguments = [*arguments, *two_sets]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*NIMA, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
            check=False, env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    program = "nima" if arguments[0].startswith("--") else f"nima {arguments[0]}"
    assert done.stderr == f"{program}: No space left on device\n"
    assert done.returncode == 2


@pytest.mark.parametrize("arguments", [["score", ".", "-f", "csv"], ["score", "."], ["compare"]])
def test_a_closed_standard_output_is_told(
    folder: Path, two_sets: list[str], arguments: list[str]
) -> None:
    if arguments == ["compare"]:
        pytest.importorskip("scipy", reason="nima compare needs the extra report")
        arguments = [*arguments, *two_sets]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "-", *NIMA, *arguments],
        cwd=folder, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        env={**os.environ, "NIMA_URL": "127.0.0.1:1"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "standard output is closed" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_a_closed_standard_error_would_have_told_is_not_among_the_results(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "-", *NIMA, "nothing"],
        cwd=tmp_path, stdout=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")


def test_an_output_in_a_deleted_folder_is_named(two_sets: list[str], tmp_path: Path) -> None:
    pytest.importorskip("jinja2", reason="nima report needs the extra report")
    gone = tmp_path / "gone"
    gone.mkdir()
    command = [*NIMA, "report", two_sets[0], "-o", "x.html"]
    done = subprocess.run(
        ["sh", "-c", 'rmdir "$PWD" && exec "$@"', "-", *command],
        cwd=gone, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "nima report: x.html: No such file or directory\n"


def test_a_way_out_of_a_folder_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("jinja2", reason="nima report needs the extra report")
    from nima_client.cli.main import main

    def report(output: Path) -> object:
        with pytest.raises(SystemExit) as ended:
            main(["report", str(tmp_path / "s.csv"), "-o", str(output)])
        return ended.value.code

    write_rows([row("a.jpg", 5)], tmp_path / "s.csv", "csv")
    assert report(tmp_path / "none" / ".." / "x" / "y.html") == 2
    assert "No such file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["s.csv"]
    (tmp_path / "there").mkdir()
    assert report(tmp_path / "there" / ".." / "x" / "y.html") == 0
    assert (tmp_path / "x" / "y.html").exists()


def test_what_a_program_for_tables_saved_is_read(tmp_path: Path) -> None:
    rows = [row("=a.jpg", 5), row("-é.jpg", 4), row("@c.jpg", 3), row("+d.jpg", 2)]
    for name in ("a.csv", "a.json", "a.jsonl"):
        path = tmp_path / name
        write_rows(rows, path, name.partition(".")[2])
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert read_rows(path) == rows


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"file": "a.jpg"}', "not a list of scores"),
        ("a.json", '"abc"', "not a list of scores"),
        ("a.csv", "", "no scores in it"),
    ],
)
def test_what_holds_no_scores_is_told(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_rows(tmp_path / name)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_line_that_cannot_be_read_is_told_as_an_editor_counts_it(
    tmp_path: Path, form: str
) -> None:
    path = tmp_path / f"a.{form}"
    write_rows([row("a.jpg", 5), row("b.jpg", 5)], path, form)
    *before, last = path.read_text().splitlines()
    path.write_text("\n\n".join([*before, last.replace("5.0", "five", 1)]))
    with pytest.raises(ValueError, match=f"line {5 if form == 'csv' else 3}: "):
        read_rows(path)


def test_a_comparison_with_nothing_says_so(tmp_path: Path) -> None:
    pytest.importorskip("scipy", reason="nima compare needs the extra report")
    from nima_client.library.compare import compare

    write_rows([], tmp_path / "a.csv", "csv")
    assert read_rows(tmp_path / "a.csv") == []
    with pytest.raises(ValueError, match="no scores in the second file"):
        compare([row("a.jpg", 5)], [])
