"""Where ``nima score`` writes to: pipes, devices, links."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("typer", reason="the commands need the extra cli")

from score_command import run

Photo = Callable[..., bytes]
SCORE = [sys.executable, "-m", "nima_client.cli.main", "score"]


@pytest.fixture
def many(tmp_path: Path, photo: Photo) -> Path:
    root = tmp_path / "many"
    root.mkdir()
    for number in range(400):  # far more than fits in a pipe
        (root / f"{number}.jpg").write_bytes(photo(number))
    return root


@pytest.mark.parametrize("form", ["jsonl", "csv", "json", "table"])
def test_a_reader_that_has_seen_enough_ends_the_run_quietly(
    many: Path, url: str, form: str
) -> None:
    with subprocess.Popen(
        [*SCORE, str(many), "--url", url, "-f", form],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        if form == "table":  # written at once: the reader must be gone before
            process.stdout.close()
        else:
            assert process.stdout.readline()
            process.stdout.close()
        said = process.stderr.read()
        process.wait(60)
    assert said == b""
    assert process.returncode == 141  # as a shell says of a program that SIGPIPE ended


def test_messages_that_nobody_reads_any_more_end_the_run_too(many: Path, url: str) -> None:
    for photo in list(many.iterdir())[::2]:
        photo.write_bytes(b"no photo")
    with subprocess.Popen(
        [*SCORE, str(many), "--url", url, "-f", "jsonl"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline()
        process.stderr.close()
        assert process.wait(60) == 141


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_scores_into_a_pipe(folder: Path, url: str, tmp_path: Path, form: str) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()), daemon=True)
    reader.start()
    done = run(folder, "-o", pipe, "-f", form, url=url)
    assert done.returncode == 0, done.stderr
    reader.join(20)
    assert got == [run(folder, "-f", form, url=url).stdout]
    assert pipe.is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "pipe"]


def test_scores_into_standard_output_by_its_path(folder: Path, url: str, tmp_path: Path) -> None:
    # /dev/stdout is a link to this. No journal can be made beside either.
    command = [*SCORE, str(folder), "--url", url, "-o", "/proc/self/fd/1", "-f", "jsonl"]
    piped = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert piped.returncode == 0, piped.stderr
    assert len([json.loads(line) for line in piped.stdout.splitlines()]) == 4
    with (tmp_path / "out.jsonl").open("wb") as file:
        subprocess.run(command, stdout=file, stderr=subprocess.PIPE, timeout=60, check=True)
    assert (tmp_path / "out.jsonl").read_bytes() == piped.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl", "photos"]


def test_scores_and_failures_through_links(folder: Path, url: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    for name in ("scores.csv", "failures.jsonl"):
        (disk / name).write_text("old")
        (disk / name).chmod(0o640)
        (tmp_path / name).symlink_to(disk / name)
    done = run(
        folder, "-o", tmp_path / "scores.csv", "--failures", tmp_path / "failures.jsonl", url=url
    )
    assert done.returncode == 0, done.stderr
    assert len((disk / "scores.csv").read_text().splitlines()) == 5
    assert (disk / "failures.jsonl").read_text() == ""
    for name in ("scores.csv", "failures.jsonl"):
        assert (tmp_path / name).is_symlink()
        assert (disk / name).stat().st_mode & 0o777 == 0o640
    assert len(list(disk.iterdir())) == 2


def test_what_cannot_be_written_to_is_told_before_anything_is_scored(
    folder: Path, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    (tmp_path / "folder.csv").mkdir()
    for arguments, message in (
        (["-o", pipe, "--resume"], "no file to go on with"),
        (["-o", tmp_path / "folder.csv"], "is a folder"),
        (["-o", tmp_path / "folder.csv", "--resume"], "is a folder"),
        (["--failures", tmp_path / "folder.csv"], "is a folder"),
    ):
        done = run(folder, *arguments, url="127.0.0.1:1")
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
