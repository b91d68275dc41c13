"""Two runs of one output: the second is kept out, and nothing of the first is lost."""

from __future__ import annotations

import json
import tarfile
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


HEADER = '{"journal": 1, "checkpoint_sha256": "sha"}\n'
DEEP = "[" * 100_000 + "\n"
HUGE = json.dumps(row("a").to_dict() | {"mean": 10**400})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (DEEP, "is not a journal of this program"),
        ('{"journal": 1, "checkpoint_sha256": 5}\n', "holds scores of the weights 5"),
        (HEADER + DEEP, "line 2 is damaged: maximum recursion"),
        (HEADER + '{"score": "a"}\n', "line 2 is damaged"),
        (HEADER + f'{{"score": {HUGE}}}\n', "line 2 is damaged: int too large"),
        (HEADER + '{"failure": {"file": ["a"], "code": "", "message": ""}}\n', "line 2 is damaged"),
    ],
    ids=["deep header", "numeric weights", "deep", "text", "huge", "list"],
)
def test_a_damaged_journal_is_told(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "journal"
    path.write_text(text)
    with Journal(path) as journal, pytest.raises(JournalError, match=said):
        journal.open("sha", resume=True)


def test_a_shard_that_was_repaired_is_no_failure_of_the_resumed_run(
    folder: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("typer", reason="the commands need the extra cli")
    from score_command import run

    def killed(_journal: Journal) -> None:
        raise KeyboardInterrupt

    shard, output, failures = (tmp_path / name for name in ("s.tar", "out.csv", "failures"))
    with tarfile.open(shard, "w") as tar:
        tar.add(folder / "1.jpg", "1.jpg")
        tar.add(folder / "2.jpg", "2.jpg")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:1600])
    arguments = (shard, "-o", output, "--failures", failures, "--resume")
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "remove", killed)
        assert run(*arguments, url=url).returncode == 130
    assert "s.tar" in failures.read_text()
    shard.write_bytes(whole)
    done = run(*arguments, url=url)
    assert done.returncode == 0, done.stderr
    assert failures.read_text() == ""
    assert output.read_text() == run(shard, "-f", "csv", url=url).stdout
