"""CSV of photos with any name: one record each, for this program and for others."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from nima_client.library.files import read_rows, write_rows, write_text
from nima_client.library.rows import Row

NAMES = ("a.jpg", "two\nlines.jpg", "carriage\rreturn.jpg", "both\r\n.jpg", 'q"u,ote.jpg', " .jpg")


def rows() -> list[Row]:
    return [Row(name, 4.0 + n, 1.0, None, (0.1,) * 10) for n, name in enumerate(NAMES)]


def test_every_name_comes_back(tmp_path: Path) -> None:
    write_rows(rows(), tmp_path / "scores.csv", "csv")
    assert read_rows(tmp_path / "scores.csv") == rows()
    text = io.StringIO()
    write_text(rows(), text, "csv")
    assert (tmp_path / "scores.csv").read_bytes() == text.getvalue().encode()
    assert text.getvalue().startswith("file,mean,std,percentile,p1,")
    assert [line[0] for line in csv.reader(io.StringIO(text.getvalue(), newline=""))][1:] == [
        *NAMES
    ]
    # Lines end as on Unix, but for those of a name.
    assert text.getvalue().replace("both\r\n", "").count("\r\n") == 0


def test_pandas_reads_the_same(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    write_rows(rows(), tmp_path / "scores.csv", "csv")
    frame = pandas.read_csv(tmp_path / "scores.csv", keep_default_na=False)
    assert frame["file"].tolist() == list(NAMES)
    assert frame["mean"].tolist() == [row.mean for row in rows()]


def test_a_csv_that_is_none_is_told_in_one_line(tmp_path: Path) -> None:
    whole = tmp_path / "scores.csv"
    write_rows(rows()[:1], whole, "csv")
    broken = whole.read_text() + '"' + "x,1\n" * 40_000  # a field without an end
    whole.write_text(broken)
    with pytest.raises(ValueError, match=r"scores\.csv: line \d+: field larger than"):
        read_rows(whole)


def test_a_csv_with_other_separators_is_told_so(tmp_path: Path) -> None:
    """Spreadsheets write them where a comma is part of a number."""
    path = tmp_path / "scores.csv"
    write_rows([Row("a.jpg", 4.0, 1.0, None, (0.1,) * 10)], path, "csv")
    path.write_text(path.read_text().replace(",", ";").replace(".", ","))
    with pytest.raises(ValueError, match="line 1: its columns are not separated by commas"):
        read_rows(path)


@pytest.mark.parametrize("form", ["csv", "jsonl", "json"])
@pytest.mark.parametrize("text", ["nan", "inf"])
def test_a_score_that_is_no_number_is_told(tmp_path: Path, form: str, text: str) -> None:
    path = tmp_path / f"scores.{form}"
    write_rows([*rows()[:1], Row("b.jpg", float(text), 1.0, None, (0.1,) * 10)], path, form)
    with pytest.raises(ValueError, match=r"scores\..*: (line 3|line 2|record 2): .*mean"):
        read_rows(path)


@pytest.mark.parametrize("text", ["5_0", "٥"])
def test_a_number_that_only_python_reads_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scores.csv"
    write_rows(rows()[:1], path, "csv")
    changed = path.read_text().replace("a.jpg,4.0,", f"a.jpg,{text},")
    path.write_text(changed, encoding="utf-8")
    with pytest.raises(ValueError, match="line 2: could not convert string to float"):
        read_rows(path)


@pytest.mark.parametrize(("form", "place"), [("json", "record 1"), ("jsonl", "line 1")])
def test_json_that_is_nested_too_deep_is_told(tmp_path: Path, form: str, place: str) -> None:
    path = tmp_path / f"scores.{form}"
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=f"{place}: .*recursion"):
        read_rows(path)


def test_a_number_beyond_all_is_told(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    write_rows(rows()[:1], path, "jsonl")
    path.write_text(path.read_text().replace('"mean": 4.0', '"mean": 1' + "0" * 400))
    with pytest.raises(ValueError, match="line 1: int too large"):
        read_rows(path)
