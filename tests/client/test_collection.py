"""Scoring a collection: what is certain is kept at once, and what is doubtful is not lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from kserve_server import KServeServer

from nima_client import ConnectError, DeadlineExceeded, NimaClient
from nima_client.library.journal import Journal, JournalError
from nima_client.library.rows import FailedRow, Row
from nima_client.library.run import certain_outcomes, score_photos
from nima_client.library.sources import Photo
from nima_client.testing import FakeTransport, reply

IMAGE = b"\xff\xd8\xff\xc0\x00\x0b\x08\x00\x08\x00\x08\x01\x01\x11\x00"


def entries(count: int) -> list[Photo]:
    return [Photo(str(number), data=IMAGE + b"#%d" % number) for number in range(count)]


class Forgetful:
    """Answers all photos but some, for which it lets time run out while it answers others."""

    def __init__(self, forgotten: Callable[[int], bool], gone_from: int = 10**9) -> None:
        self.forgotten = forgotten
        self.gone_from = gone_from
        self.answered = threading.Semaphore(0)
        self.gone = False

    def __call__(self, request: Any) -> Any:
        number = int(request.images[0].rpartition(b"#")[2])
        self.gone = self.gone or number >= self.gone_from
        if self.gone:
            raise ConnectError("gone", retryable=False)
        if self.forgotten(number):
            while self.answered.acquire(blocking=False):
                pass
            self.answered.acquire(timeout=5)  # by another one, so that the call goes on
            time.sleep(0.01)
            raise DeadlineExceeded("late")
        self.answered.release()
        return reply(request)


def client_of(handler: Any) -> NimaClient:
    return NimaClient(transport=FakeTransport(handler, workers=4), max_in_flight=4)


def test_one_photo_that_took_too_long_does_not_hold_the_others_back() -> None:
    with client_of(Forgetful(lambda number: number == 3)) as client:
        outcomes = list(certain_outcomes(client, entries(60)))
        assert [place for place, _ in outcomes] == [n for n in range(60) if n != 3] + [3]
        assert isinstance(outcomes[-1][1], FailedRow)
        assert all(isinstance(outcome, Row) for _, outcome in outcomes[:-1])
        # In order, for who asks for it.
        assert [o.file for o in score_photos(client, entries(60))] == [str(n) for n in range(60)]


def test_photos_that_take_too_long_again_and_again_are_told_before_the_end() -> None:
    """One in 400, so that there is always one in the window; what is held back stays little."""
    count = 4000
    with client_of(Forgetful(lambda number: number % 400 == 10)) as client:
        most = client._most_under_way
        came: list[int] = []
        for place, outcome in certain_outcomes(client, entries(count)):
            if isinstance(outcome, FailedRow):
                assert place % 400 == 10
                assert came[-1] in (place + most, count - 1) or came[-1] % 400 == 10
            came.append(place)
        assert sorted(came) == list(range(count))
        read = 0

        def counted() -> Any:
            nonlocal read
            for photo in entries(count):
                read += 1
                yield photo

        for number, outcome in enumerate(score_photos(client, counted())):
            assert outcome.file == str(number)
            assert read - number <= 2 * most + 2


def test_photos_that_were_not_tried_are_not_told_when_the_server_is_gone() -> None:
    reached: list[tuple[int, Any]] = []

    def collect(client: NimaClient) -> None:
        for outcome in certain_outcomes(client, entries(100)):
            reached.append(outcome)

    with (
        client_of(Forgetful(lambda number: number == 3, gone_from=50)) as client,
        pytest.raises(ConnectError),
    ):
        collect(client)
    assert [place for place, _ in reached][:30] == [n for n in range(31) if n != 3]
    assert all(isinstance(outcome, Row) for _, outcome in reached)


def test_a_journal_gives_its_rows_in_the_order_of_the_photos(tmp_path: Path) -> None:
    def row(name: str) -> Row:
        return Row(name, 5.0, 1.0, None, (0.1,) * 10)

    photos = entries(6)
    with Journal(tmp_path / "journal") as journal:
        journal.open("sha", resume=False)
        for photo in journal.left(photos):
            if photo.name not in ("1", "2"):
                journal.add(row(photo.name))
        journal.add(FailedRow("2", "DEADLINE", "late"))
        assert [r.file for r in journal.rows()] == ["0", "3", "4", "5"]
    with Journal(tmp_path / "journal") as journal:
        journal.open("sha", resume=True)
        # Photos that this run was not asked for come first.
        assert [photo.name for photo in journal.left(photos[1:])] == ["1"]
        journal.add(row("1"))
        assert [r.file for r in journal.rows()] == ["0", "1", "3", "4", "5"]
        assert [r.file for r in journal.failures()] == ["2"]
        assert journal.failed == 1


def test_what_has_been_repaired_is_no_failure_any_more(tmp_path: Path) -> None:
    def go(photos: list[Photo]) -> tuple[list[str], list[str], int]:
        with Journal(tmp_path / "journal") as journal:
            journal.open("sha", resume=True)
            for photo in journal.left(photos):
                if photo.unreadable or photo.name == "a/bad.jpg":
                    journal.add(FailedRow(photo.name, "UNREADABLE", "damaged"))
                else:
                    journal.add(Row(photo.name, 5.0, 1.0, None, (0.1,) * 10))
            rows, failures = list(journal.rows()), list(journal.failures())
            return [r.file for r in rows], [f.file for f in failures], journal.failed

    closed, shard = Photo("a/closed", unreadable="closed"), Photo("a/s.tar", unreadable="damaged")
    bad, first, second = (Photo(f"a/{name}") for name in ("bad.jpg", "s.tar/1.jpg", "s.tar/2.jpg"))
    failures = ["a/bad.jpg", "a/closed", "a/s.tar"]
    damaged = [bad, closed, first, shard]
    assert go(damaged) == (["a/s.tar/1.jpg"], failures, 3)
    assert go(damaged) == (["a/s.tar/1.jpg"], failures, 3)  # as damaged as before
    inner = Photo("a/closed/in/1.jpg")
    repaired = [bad, inner, first, second]
    scored = [photo.name for photo in (inner, first, second)]
    assert go(repaired) == (scored, ["a/bad.jpg"], 1)
    assert go(repaired) == (scored, ["a/bad.jpg"], 1)
    assert go([inner])[1:] == (["a/bad.jpg", "a/s.tar"], 2)  # not asked for it, nothing is known


def test_a_journal_does_not_mix_photos_made_smaller_with_others(tmp_path: Path) -> None:
    for first, second, reason in (
        (448, None, "with --max-side 448"),
        (448, 640, "with --max-side 448"),
        (None, 640, "without --max-side"),
    ):
        path = tmp_path / f"{first}-{second}"
        with Journal(path) as journal:
            journal.open("sha", max_side=first, resume=False)
        with Journal(path) as journal, pytest.raises(JournalError, match=reason):
            journal.open("sha", max_side=second, resume=True)
        with Journal(path) as journal:
            journal.open("sha", max_side=first, resume=True)


def test_a_line_that_a_crash_cut_short_is_dropped(tmp_path: Path) -> None:
    def row(name: str) -> Row:
        return Row(name, 5.0, 1.0, None, (0.1,) * 10)

    path = tmp_path / "journal"
    with Journal(path) as journal:
        journal.open("sha", resume=False)
        journal.add(row("0"))
    whole = path.read_bytes()
    for torn in (b'{"score": {"fi', b'{"score"', b"{", b""):
        path.write_bytes(whole + torn)
        with Journal(path) as journal:
            journal.open("sha", resume=True)
            assert journal.done == {"0"}
            assert [photo.name for photo in journal.left(entries(2))] == ["1"]
            journal.add(row("1"))
            assert [r.file for r in journal.rows()] == ["0", "1"]
        with Journal(path) as journal:
            journal.open("sha", resume=True)
            assert journal.done == {"0", "1"}
            assert list(journal.rows()) == [row("0"), row("1")]
    # Cut within its first line, it is new.
    path.write_bytes(whole[:9])
    with Journal(path) as journal:
        journal.open("sha", resume=True)
        journal.add(row("1"))
    with Journal(path) as journal:
        journal.open("sha", resume=True)
        assert [r.file for r in journal.rows()] == ["1"]


def test_ctrl_c_keeps_what_was_scored_beside_a_photo_that_took_too_long(
    tmp_path: Path, photo: Callable[..., bytes]
) -> None:
    pytest.importorskip("typer", reason="the commands need the extra cli")
    root = tmp_path / "many"
    root.mkdir()
    for number in range(600):
        (root / f"{number:03d}.jpg").write_bytes(photo(number))
    late = threading.Event()
    forgotten = photo(10)

    def behaviour(number: int, images: list[bytes], context: Any) -> None:
        time.sleep(0.01)
        if late.is_set() and forgotten in images:
            time.sleep(0.2)
            context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "late")

    command = [sys.executable, "-m", "nima_client.cli.main", "score", str(root), "--in-flight", "2"]
    with KServeServer(behaviour) as server:
        environment = {**os.environ, "NIMA_URL": server.url}

        def start(output: Path, **options: Any) -> subprocess.Popen[str]:
            return subprocess.Popen(
                [*command, "-o", str(output), "--resume"],
                env=environment, stderr=subprocess.PIPE, text=True, **options,
            )  # fmt: skip

        whole, output = tmp_path / "whole.csv", tmp_path / "stopped.csv"
        with start(whole) as process:
            _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        late.set()
        journal = tmp_path / "stopped.csv.journal"
        # A shell lets what it runs in the background ignore Ctrl-C, and that is inherited.
        with start(output, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as run:
            end = time.monotonic() + 60
            while time.monotonic() < end and run.poll() is None:
                if journal.exists() and journal.read_bytes().count(b"\n") > 100:
                    break
                time.sleep(0.01)
            run.send_signal(signal.SIGINT)
            _, said = run.communicate(timeout=30)
        assert run.returncode == 130, said
        assert "010.jpg" not in journal.read_text()
        late.clear()
        with start(output) as process:
            _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        assert "were there already" in said
        assert output.read_bytes() == whole.read_bytes()
