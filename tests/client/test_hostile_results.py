"""Files of scores that are damaged, of other programs, or made to do harm."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nima_client.library.actions import Action, place, without_file
from nima_client.library.files import read_rows, write_rows
from nima_client.library.rows import Row

GOOD = Row("a.jpg", 5.0, 1.0, 50.0, (0.1,) * 10)


def written(path: Path, *fields: Any) -> Path:
    path.write_text(json.dumps([GOOD.to_dict(), *fields]))
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mean": 1e308}, "mean is 1e.308, and not within 1 to 10"),
        ({"mean": -1e308}, "mean is -1e.308"),
        ({"mean": 0.5}, "mean is 0.5"),
        ({"std": -5}, "std is -5"),
        ({"percentile": 1e300}, "percentile is"),
        ({"distribution": [1e308, -1e308] * 5}, "not of probabilities"),
        ({"distribution": [-0.1] * 10}, "not of probabilities"),
        ({"distribution": "0123456789"}, "not of probabilities"),
        ({"file": None}, "name of its file is no text"),
        ({"file": ["a.jpg"]}, "name of its file is no text"),
    ],
)
def test_what_no_score_can_be_is_told(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    """The page, and the comparison, ended in the middle or held Infinity."""
    path = written(tmp_path / "scores.json", GOOD.to_dict() | change)
    with pytest.raises(ValueError, match=rf"scores\.json: record 2: .*{said}"):
        read_rows(path)


@pytest.mark.parametrize("record", [5, None, "a.jpg", [1]])
def test_a_record_that_is_none_is_told(tmp_path: Path, record: Any) -> None:
    with pytest.raises(ValueError, match="record 2: not a score, as nima score writes it"):
        read_rows(written(tmp_path / "scores.json", record))


def test_values_at_the_ends_of_their_scales_are_read(tmp_path: Path) -> None:
    rows = [
        Row("low.jpg", 1.0, 0.0, 0.0, (1.0, *(0.0,) * 9)),
        Row("high.jpg", 10.000001, 4.500001, 100.0, (*(0.0,) * 9, 1.000001)),
    ]
    write_rows(rows, tmp_path / "scores.csv", "csv")
    assert read_rows(tmp_path / "scores.csv") == rows


def test_parquet_that_is_damaged_within_or_encrypted_is_told_with_its_name(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "scores.parquet"
    write_rows([GOOD] * 3, path, "parquet")
    whole = path.read_bytes()
    for damaged in (b"PARE" + whole[4:-4] + b"PARE", whole[:4] + b"\xff" * 60 + whole[64:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"scores\.parquet: record 1: .*Parquet"):
            read_rows(path)


def test_names_that_no_disk_takes_have_no_picture_and_no_file(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    shard = tmp_path / "shard.tar"
    shard.touch()
    names = [
        f"{tmp_path}/{'x' * 300}.d/a.jpg",
        f"{tmp_path}/{'a.b/' * 20_000}c.jpg",
        f"{shard}/{'a/' * 100_000}b.jpg",
        "a\0.jpg",
    ]
    rows = [Row(name, 5.0, 1.0, None, (0.1,) * 10) for name in names]
    assert without_file(rows) == 1
    told = []
    place(rows, tmp_path / "best", Action.COPY, report=lambda row, error: told.append(row.file))
    assert told == [names[0], names[1], names[3]]
    write_rows(rows, tmp_path / "scores.json", "json")
    command = [sys.executable, "-m", "nima_client.cli.main", "report", "scores.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "4 photos (4 not found" in done.stderr
