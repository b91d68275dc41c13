"""Errors of files as commands print them: without Python's number and quotes."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nima_client._os_errors import in_words, reason

NIMA = [sys.executable, "-m", "nima_client.cli.main"]
GONE = "No such file or directory"


def _of(failing: Callable[[], object]) -> OSError:
    with pytest.raises(OSError) as caught:
        failing()
    return caught.value


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("no photo.jpg", "no photo.jpg"),
        (Path("é.jpg"), "é.jpg"),
        (b"caf\xe9.jpg", r"caf\xe9.jpg"),
        ("", "''"),
        ("two\nlines\x1b[2J", r"'two\nlines\x1b[2J'"),
    ],
)
def test_a_file_is_named_first(
    name: str | bytes | Path, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = _of(lambda: os.stat(name))
    assert in_words(error) == f"{shown}: {GONE}"
    assert reason(error) == GONE


def test_both_files_are_named(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    assert in_words(_of(lambda: old.rename(new))) == f"{old} -> {new}: {GONE}"


def test_an_error_without_a_file_is_its_reason() -> None:
    assert in_words(_of(lambda: os.close(os.open(os.devnull, os.O_RDONLY) + 4096))) == (
        os.strerror(errno.EBADF)
    )
    assert in_words(_of(lambda: os.listdir(2**20))) == os.strerror(errno.EBADF)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        refused = _of(lambda: socket.create_connection(free.getsockname(), timeout=5))
    assert in_words(refused) == os.strerror(errno.ECONNREFUSED)


def test_other_errors_keep_their_text() -> None:
    class Own(OSError):
        def __str__(self) -> str:
            return "its own words"

    for error in (Own(errno.ENOENT, GONE, "x"), OSError("its own words"), KeyError("its own")):
        assert in_words(error) == reason(error) == str(error)


@pytest.mark.parametrize("name", ["no.csv", "no.parquet"])
def test_a_command_tells_of_a_file_that_is_not_there(name: str, tmp_path: Path) -> None:
    for module in ("jinja2", "pyarrow"):
        pytest.importorskip(module, reason="nima report needs the extra report")
    done = subprocess.run(
        [*NIMA, "report", name, "-o", "page.html"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, f"nima report: {name}: {GONE}\n")
