"""Two runs of one output: the second is kept out, and nothing of the first is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from nima_client.library.journal import Journal, JournalError
from nima_client.library.rows import Row


def row(name: str) -> Row:
    return Row(name, 5.0, 1.0, None, (0.1,) * 10)


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_is_told_of_the_first_one(tmp_path: Path, resume: bool) -> None:
    """Not to delete the journal, which is alive."""
    with Journal(tmp_path / "journal") as first:
        first.open("sha", resume=False)
        second = Journal(tmp_path / "journal")
        with pytest.raises(JournalError, match="another run is writing"):
            second.open("sha", resume=resume)
        first.add(row("a"))
    with Journal(tmp_path / "journal") as left, pytest.raises(JournalError, match="--resume"):
        left.open("sha", resume=False)


def test_a_journal_that_somebody_deleted_still_gives_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        journal.open("sha", resume=False)
        journal.add(row("a"))
        path.unlink()
        with Journal(path) as other:
            other.open("sha", resume=False)
            other.add(row("b"))
            journal.add(row("c"))
            assert [r.file for r in journal.rows()] == ["a", "c"]
            assert [r.file for r in other.rows()] == ["b"]


def test_a_run_that_ended_meanwhile_does_not_take_the_journal_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    path = tmp_path / "journal"
    ordinary = fcntl.flock
    first = Journal(path)
    first.open("sha", resume=False)

    def flock(file: object, how: int) -> None:
        if path.exists() and first._file is not None:
            first.remove()  # between the opening of the second run and its lock
        ordinary(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with Journal(path) as second:
        second.open("sha", resume=False)
        second.add(row("a"))
        assert path.read_bytes().count(b"\n") == 2


def test_an_empty_journal_holds_nothing_to_go_on_with(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.touch()
    with Journal(path) as journal:
        journal.open("sha", resume=False)
        journal.add(row("a"))
        assert [r.file for r in journal.rows()] == ["a"]
