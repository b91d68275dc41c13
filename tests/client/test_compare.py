"""``nima compare``: figures checked by hand and against another implementation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy", reason="nima compare needs the extra report")
pytest.importorskip("typer", reason="nima compare needs the extra report")

from nima_client.cli.main import main
from nima_client.library.compare import compare
from nima_client.library.files import write_rows
from nima_client.library.rows import Row
from nima_client.testing import moments


def row(file: str, distribution: list[float]) -> Row:
    mean, std = moments(distribution)
    return Row(file, mean, std, None, tuple(distribution))


def at(rating: int) -> list[float]:
    return [float(r == rating) for r in range(1, 11)]


def test_by_hand() -> None:
    first = [row("a", at(4)), row("b", at(6)), row("c", at(5)), row("x", at(1))]
    second = [row("a", at(5)), row("b", at(8)), row("c", at(5)), row("y", at(1))]
    result = compare(first, second)
    assert result.first_weights == result.second_weights == ()
    named = compare(
        [dataclasses.replace(first[0], checkpoint="a", checkpoint_sha256="12" * 32)], second
    )
    assert named.first_weights == ("a (121212121212)",)
    assert (result.photos, result.only_first, result.only_second) == (3, ("x",), ("y",))
    assert [d.file for d in result.differences] == ["b", "a", "c"]
    assert result.mean_change == pytest.approx(1.0)
    assert result.mean_absolute_change == pytest.approx(1.0)
    assert result.largest_change == pytest.approx(2.0)
    # Moving everything by k ratings makes k of ten cumulative differences 1.
    emds = {d.file: d.emd for d in result.differences}
    assert emds == {"a": pytest.approx(0.1**0.5), "b": pytest.approx(0.2**0.5), "c": 0.0}
    # Ranks 1 3 2 against 1.5 3 1.5.
    assert result.spearman == pytest.approx(np.corrcoef([1, 3, 2], [1.5, 3, 1.5])[0, 1])
    assert result.pearson == pytest.approx(np.corrcoef([4, 6, 5], [5, 8, 5])[0, 1])


def test_equal_sets_and_constant_scores() -> None:
    rows = [row("a", at(4)), row("b", at(6))]
    same = compare(rows, rows)
    assert (same.spearman, same.kendall, same.largest_change, same.emd) == (
        pytest.approx(1.0), pytest.approx(1.0), 0.0, 0.0,
    )  # fmt: skip
    flat = compare([row("a", at(4)), row("b", at(4))], rows)
    assert flat.spearman is None
    assert compare(rows[:1], rows[:1]).pearson is None
    with pytest.raises(ValueError, match="no photo is in both"):
        compare(rows, [row("z", at(4))])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows([row("p/a.jpg", at(4)), row("p/b.jpg", at(6))], tmp_path / "a.csv", "csv")
    write_rows([row("p/a.jpg", at(5)), row("p/b.jpg", at(6))], tmp_path / "b.jsonl", "jsonl")

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["compare", *map(str, arguments)])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    code, out, _ = run(tmp_path / "a.csv", tmp_path / "b.jsonl")
    assert code == 0
    assert "a.jpg" in out
    assert "+1.00" in out
    assert "b.jpg" not in out
    code, out, _ = run(tmp_path / "a.csv", tmp_path / "b.jsonl", "-f", "json")
    assert json.loads(out)["photos"] == 2
    code, _, err = run(tmp_path / "a.csv", tmp_path / "none.csv")
    assert code == 2
    assert "none.csv" in err
