"""``nima score`` as people type it, in a process of its own."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("typer", reason="the commands need the extra cli")

from score_command import run

from nima_client.cli.main import main
from nima_client.library.files import read_rows
from nima_client.library.xmp import read_rating

Photo = Callable[..., bytes]


def names(done: Any) -> list[str]:
    return [Path(json.loads(line)["file"]).name for line in done.stdout.splitlines()]


def test_a_folder_is_walked_in_natural_order(folder: Path, url: str) -> None:
    done = run(folder, "-f", "jsonl", url=url)
    assert done.returncode == 0, done.stderr
    assert names(done) == ["1.jpg", "2.jpg", "10.jpg", "A.JPEG"]
    assert "4 photos scored" in done.stderr
    assert names(run(folder, "--no-recursive", "-f", "jsonl", url=url)) == [
        "1.jpg", "2.jpg", "10.jpg",
    ]  # fmt: skip
    by_name = ["1.jpg", "2.jpg", "10.jpg", "A.JPEG"]
    for sort, expected in (("file", by_name), ("-file", by_name[::-1])):
        assert names(run(folder, "-f", "jsonl", f"--sort={sort}", url=url)) == expected


def test_patterns_and_single_files(folder: Path, url: str) -> None:
    assert names(run(folder / "1*.jpg", "-f", "jsonl", url=url)) == ["1.jpg", "10.jpg"]
    assert names(run(folder / "**" / "*.JPEG", "-f", "jsonl", url=url)) == ["A.JPEG"]
    both = run(folder / "2.jpg", folder, "-f", "jsonl", url=url)
    assert names(both) == ["2.jpg", "1.jpg", "10.jpg", "A.JPEG"]  # once each


def test_a_table_on_standard_output(folder: Path, url: str) -> None:
    done = run(folder, url=url)
    assert done.returncode == 0
    lines = [line for line in done.stdout.splitlines() if ".jpg" in line]
    assert len(lines) == 3
    assert "mean" in done.stdout
    assert "█" in lines[0]
    assert f"files in {folder}/" in done.stdout


def test_tables_without_unicode(folder: Path, url: str) -> None:
    command = [sys.executable, "-m", "nima_client.cli.main", "score", str(folder), "--url", url]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(command, capture_output=True, env=environment, check=True)
    assert done.stdout.isascii()
    assert b"@" in done.stdout


def test_every_format_holds_the_same(folder: Path, url: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    read = []
    for form in ("json", "jsonl", "csv", "parquet"):
        output = tmp_path / f"out.{form}"
        done = run(folder, "-o", output, url=url)
        assert done.returncode == 0, done.stderr
        read.append(read_rows(output))
        if form != "parquet":
            text = run(folder, "-f", form, url=url).stdout
            assert text == output.read_text()
    assert len(read[0]) == 4
    assert read[0] == read[1] == read[2] == read[3]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert abs(sum(float(rows[0][f"p{i}"]) for i in range(1, 11)) - 1) < 1e-5
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "out.csv", "out.json", "out.jsonl", "out.parquet", "photos",
    ]  # fmt: skip


def test_bad_files_are_one_line_each_and_never_a_lost_run(
    folder: Path, url: str, tmp_path: Path
) -> None:
    (folder / "3.jpg").write_text("text")
    (folder / "4.jpg").write_bytes(b"")
    whole = (folder / "1.jpg").read_bytes()
    (folder / "5 \x1b[31m\n.jpg").write_bytes(whole[:-1])  # a name that would command a terminal
    (folder / "6.jpg").symlink_to(folder / "nowhere.jpg")
    failures = tmp_path / "failures.jsonl"
    done = run(folder, "-f", "jsonl", "--failures", failures, url=url)
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 5
    assert "\x1b" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if ".jpg: " in line]
    assert [line.split(": ")[1] for line in lines] == ["UNSUPPORTED", "EMPTY", "UNREADABLE"]
    recorded = [json.loads(line) for line in failures.read_text().splitlines()]
    assert [Path(entry["file"]).name for entry in recorded] == ["3.jpg", "4.jpg", "6.jpg"]
    done = run(folder / "3.jpg", url=url)
    assert "0 photos scored" in done.stderr
    assert "photos/s" not in done.stderr


def test_names_that_are_not_utf8(folder: Path, url: str, tmp_path: Path) -> None:
    target = os.fsencode(folder) + b"/caf\xe9.jpg"
    shutil.copy(folder / "1.jpg", target)
    done = run(folder, "-f", "jsonl", url=url)
    assert done.returncode == 0
    assert "caf\\xe9.jpg" in names(done)
    output = tmp_path / "scores.csv"
    done = run(folder, "-o", output, "--xmp", "--copy-to", tmp_path / "best", url=url)
    assert done.returncode == 0, done.stderr
    assert Path(os.fsdecode(target + b".xmp")).exists()
    assert sum(os.fsencode(p).endswith(b"_caf\xe9.jpg") for p in (tmp_path / "best").iterdir()) == 1


def test_choices(folder: Path, url: str) -> None:
    everything = [json.loads(x) for x in run(folder, "-f", "jsonl", url=url).stdout.splitlines()]
    ranked = sorted((row["mean"] for row in everything), reverse=True)

    def means(*arguments: object) -> list[float]:
        done = run(folder, "-f", "jsonl", *arguments, url=url)
        assert done.returncode == 0, done.stderr
        return [json.loads(line)["mean"] for line in done.stdout.splitlines()]

    assert means("--top", 2) == ranked[:2]
    assert means("--bottom", 2) == ranked[::-1][:2]
    assert means("--sort=-mean") == ranked
    assert means("--sort", "mean", "--min", ranked[2], "--max", ranked[0]) == ranked[2::-1]


def test_tar_shards(folder: Path, url: str, tmp_path: Path, photo: Photo) -> None:
    for suffix, mode in ((".tar", "w"), (".tar.gz", "w:gz")):
        shard = tmp_path / f"shard-000{suffix}"
        with tarfile.open(shard, mode) as tar:
            for number in range(3):
                for name, data in (
                    (f"{number:03d}.jpg", photo(number)),
                    (f"{number:03d}.json", b"{}"),
                ):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        done = run(shard, "-f", "jsonl", url=url)
        assert done.returncode == 0, done.stderr
        files = [json.loads(line)["file"] for line in done.stdout.splitlines()]
        assert files == [f"{shard}/{number:03d}.jpg" for number in range(3)]
        shard.write_bytes(shard.read_bytes()[:-700])
    broken = tmp_path / "broken.tar"
    broken.write_bytes(b"no archive")
    done = run(broken, "-f", "jsonl", url=url)
    assert done.returncode == 1
    assert f"{broken}: UNREADABLE: not a readable tar archive" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no such file"),
        (["*.none"], "nothing matches"),
        (["empty"], "no photos there"),
        ([".", "-f", "parquet"], "--output"),
        ([".", "-o", "scores.txt"], "--format"),
        ([".", "--resume"], "--output"),
        ([".", "--top", "1", "--bottom", "1"], "exclude"),
        ([".", "--sort", "colour"], "sort by"),
        ([".", "--url", "http://127.0.0.1:8000"], "gRPC"),
    ],
)
def test_a_wrong_command_line_is_told_in_one_line(
    arguments: list[str], message: str, url: str, folder: Path
) -> None:
    (folder / "empty").mkdir()
    done = run(*arguments, url=url, cwd=folder)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_no_server_at_the_address_given(folder: Path) -> None:
    done = run(folder, "--url", "127.0.0.1:1")
    assert done.returncode == 3
    assert "check that it runs" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("server", "count"),
    [
        pytest.param("url", 400, id="in-process"),
        pytest.param("url", 2000, id="in-process-2000", marks=pytest.mark.slow),
        pytest.param("triton", 2000, id="triton-2000", marks=pytest.mark.slow),
    ],
)
def test_killed_at_random_and_resumed_it_gives_the_same_file(
    request: pytest.FixtureRequest, tmp_path: Path, photo: Photo, server: str, count: int
) -> None:
    served = request.getfixturevalue(server)
    url = served if isinstance(served, str) else served.grpc_url
    root = tmp_path / "many"
    root.mkdir()
    for number in range(count):
        (root / f"{number:04d}.jpg").write_bytes(photo(number) if number % 97 else b"broken")
    whole, output = tmp_path / "whole.csv", tmp_path / "killed.csv"
    assert run(root, "-o", whole, "--failures", tmp_path / "f1", url=url).returncode == 1

    rng = random.Random(2)
    environment = {**os.environ, "NIMA_URL": url}
    command = [sys.executable, "-m", "nima_client.cli.main", "score", str(root), "-o", str(output)]
    command += ["--failures", str(tmp_path / "f2"), "--resume"]
    journal = output.with_name("killed.csv.journal")
    seen = 0
    for _ in range(3):
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
            goal = seen + rng.randrange(10 * count, 60 * count)  # of some 450 bytes a photo
            end = time.monotonic() + 60
            while time.monotonic() < end and process.poll() is None:
                if journal.exists() and journal.stat().st_size > goal:
                    break
                time.sleep(0.002)
            assert process.poll() is None, "it ended before it could be killed"
            process.kill()
        assert not output.exists()
        seen = journal.stat().st_size
    lines = journal.read_text().splitlines()
    assert count // 20 < len(lines) < count
    final = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert final.returncode == 1, final.stderr
    assert "were there already" in final.stderr
    assert output.read_bytes() == whole.read_bytes()
    assert (tmp_path / "f2").read_bytes() == (tmp_path / "f1").read_bytes()
    assert not journal.exists()


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, url: str, photo: Photo) -> None:
    root = tmp_path / "many"
    root.mkdir()
    for number in range(2500):  # so many that it can be stopped in the middle on a busy machine
        (root / f"{number}.jpg").write_bytes(photo(number))
    output = tmp_path / "out.csv"
    command = [sys.executable, "-m", "nima_client.cli.main", "score", str(root)]
    command += ["--url", url, "-o", str(output), "--in-flight", "1"]
    journal = tmp_path / "out.csv.journal"
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        # A shell lets what it runs in the background ignore Ctrl-C, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        end = time.monotonic() + 30
        while time.monotonic() < end and not (journal.exists() and journal.stat().st_size > 5000):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        try:
            _, said = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130
    assert said.splitlines()[-1].endswith("--resume goes on with it")
    assert "Traceback" not in said
    assert journal.exists()


def test_a_finished_run_is_not_done_again(folder: Path, url: str, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    assert run(folder, "-o", output, "--resume", url=url).returncode == 0
    before = output.stat()
    done = run(folder, "-o", output, "--resume", url="127.0.0.1:1")
    assert done.returncode == 0
    assert "is finished" in done.stderr
    assert output.stat().st_mtime_ns == before.st_mtime_ns


def test_two_runs_of_one_output_keep_apart(folder: Path, url: str, tmp_path: Path) -> None:
    from nima_client.library.journal import Journal

    output = tmp_path / "out.csv"
    with Journal.beside(output) as other:
        other.open("sha", resume=True)
        done = run(folder, "-o", output, "--resume", url=url)
        assert done.returncode == 2
        assert "another run" in done.stderr


def test_a_leftover_journal_is_not_thrown_away(folder: Path, url: str, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    journal = tmp_path / "out.csv.journal"
    journal.write_text('{"journal": 1, "checkpoint_sha256": "other"}\n')
    done = run(folder, "-o", output, url=url)
    assert done.returncode == 2
    assert "--resume" in done.stderr
    done = run(folder, "-o", output, "--resume", url=url)
    assert done.returncode == 2
    assert "cannot mix" in done.stderr
    journal.write_text("something else\n")
    assert "not a journal" in run(folder, "-o", output, "--resume", url=url).stderr


def test_resumed_with_another_max_side_it_tells(folder: Path, url: str, tmp_path: Path) -> None:
    from nima_client import NimaClient
    from nima_client.library.journal import Journal

    output = tmp_path / "scores.csv"
    with NimaClient(url) as client, Journal.beside(output) as journal:
        journal.open(client.model_info().served.checkpoint_sha256, max_side=448, resume=False)
    done = run(folder, "-o", output, "--resume", url=url)
    assert done.returncode == 2
    assert "holds scores with --max-side 448" in done.stderr
    assert run(folder, "-o", output, "--resume", "--max-side", 448, url=url).returncode != 2
    assert output.exists()


def test_a_server_that_goes_away_costs_nothing_that_was_scored(
    tmp_path: Path, photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kserve_server import KServeServer

    from nima_client import NimaClient, RetryPolicy, TransportError
    from nima_client.library.journal import Journal
    from nima_client.library.run import score_photos
    from nima_client.library.sources import Photo as Entry

    photos = [Entry(f"{i}.jpg", data=photo(i)) for i in range(60)]
    server = KServeServer()
    client = NimaClient(server.url, retry=RetryPolicy(budget_s=0.3), max_in_flight=4)
    journal = Journal(tmp_path / "journal")
    journal.open("sha", resume=True)

    def score_all() -> None:
        for number, outcome in enumerate(score_photos(client, photos)):
            journal.add(outcome)
            if number == 20:
                server.stop()

    with client, journal, pytest.raises(TransportError):
        score_all()
    assert 21 <= len(journal.done) < 60
    assert list(journal.failures()) == []  # nothing that was not tried counts as failed


def test_a_journal_does_not_mix_int8_with_other_scores(tmp_path: Path) -> None:
    from nima_client.library.journal import Journal, JournalError

    for name, first, second, reason in (
        ("a", "int8", "fp32", "holds scores with int8, the server has it off"),
        ("b", "", "int8", "holds scores without int8, the server has it on"),
    ):
        with Journal(tmp_path / name) as journal:
            journal.open("sha", precision=first, resume=False)
        with Journal(tmp_path / name) as journal, pytest.raises(JournalError, match=reason):
            journal.open("sha", precision=second, resume=True)
        with Journal(tmp_path / name) as journal:
            journal.open("sha", precision=first, resume=True)
    # FP32 and an engine's own precision may follow each other.
    with Journal(tmp_path / "c") as journal:
        journal.open("sha", precision="", resume=False)
    with Journal(tmp_path / "c") as journal:
        journal.open("sha", precision="fp32", resume=True)


def test_a_lost_photo_between_scored_ones_is_not_a_failure_when_the_server_is_gone() -> None:
    from nima_client import ConnectError, NimaClient, RetryPolicy
    from nima_client.library.run import score_photos
    from nima_client.library.sources import Photo as Entry
    from nima_client.testing import FakeTransport, reply

    gone = [False]

    def handler(request: Any) -> Any:
        # Photo 3 is lost, photo 4 answered in the same moment, and then nobody answers.
        number = int(request.images[0].rpartition(b"#")[2])
        gone[0] = gone[0] or number > 4
        if number == 3 or gone[0]:
            raise ConnectError("gone")
        return reply(request)

    image = b"\xff\xd8\xff\xc0\x00\x0b\x08\x00\x08\x00\x08\x01\x01\x11\x00"
    photos = [Entry(str(i), data=image + b"#%d" % i) for i in range(30)]
    policy = RetryPolicy(attempts=3, budget_s=0.2, initial_backoff_s=0.05)
    reached: list[Any] = []
    client = NimaClient(transport=FakeTransport(handler), retry=policy, max_in_flight=2)
    with client, pytest.raises(ConnectError):
        reached.extend(score_photos(client, photos))
    assert [(type(o).__name__, o.file) for o in reached] == [
        ("Row", str(i)) for i in (0, 1, 2, 4)
    ]  # fmt: skip

    # A server that goes on: then the photo has failed, in its place.
    gone[0] = False
    more = [photo for photo in photos if int(photo.name) < 5]
    more += [Entry(f"more {i}", data=image + b"#0") for i in range(1200)]
    with NimaClient(transport=FakeTransport(handler), retry=policy, max_in_flight=2) as client:
        every = list(score_photos(client, more))
    assert [o.file for o in every] == [photo.name for photo in more]
    assert [o.file for o in every if not hasattr(o, "mean")] == ["3"]


def test_ratings_in_sidecars(folder: Path, url: str) -> None:
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.suffix in (".jpg", ".JPEG")}
    foreign = folder / "1.jpg.xmp"
    foreign.write_text(
        '<?xml version="1.0"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" '
        'xmlns:dc="http://purl.org/dc/elements/1.1/" dc:source="mine" xmp:Rating="0"/>'
        "</rdf:RDF></x:xmpmeta>"
    )
    done = run(folder, "--xmp", url=url)
    assert done.returncode == 0, done.stderr
    assert "4 sidecars written" in done.stderr
    assert 'dc:source="mine"' in foreign.read_text()
    for path, data in before.items():
        assert path.read_bytes() == data
        rating = read_rating(path)
        if ".hidden" in path.parts:
            assert rating is None
        else:
            assert rating in range(1, 6)
    foreign.write_text("no xml")
    (folder / "2.jpg.xmp").unlink()
    done = run(folder, "--xmp", url=url)
    assert done.returncode == 1
    assert "1.jpg.xmp: not XML" in done.stderr
    assert "3 sidecars written" in done.stderr
    done = run(folder / "2.jpg", "--xmp", url=url)
    assert "1 sidecar written" in done.stderr
    assert read_rating(folder / "2.jpg") in range(1, 6)
    assert foreign.read_text() == "no xml"


@pytest.mark.parametrize("action", ["copy", "link", "move"])
def test_the_chosen_can_be_copied_linked_or_moved(
    folder: Path, url: str, tmp_path: Path, action: str
) -> None:
    target = tmp_path / "best"
    done = run(folder, "--top", 2, f"--{action}-to", target, url=url)
    assert done.returncode == 0, done.stderr
    placed = sorted(target.iterdir())
    assert [p.name.split("_")[0] for p in placed] == ["001", "002"]
    assert all(p.is_symlink() == (action == "link") for p in placed)
    left = len([p for p in folder.rglob("*.*") if p.suffix.lower() in (".jpg", ".jpeg")]) - 1
    assert left == (2 if action == "move" else 4)
    if action != "move":
        again = run(folder, "--top", 2, f"--{action}-to", target, url=url)
        assert again.returncode == 0, again.stderr
        assert sorted(target.iterdir()) == placed
        placed[0].unlink()
        placed[0].write_text("of somebody else")
        again = run(folder, "--top", 2, f"--{action}-to", target, url=url)
        assert again.returncode == 1
        assert "nothing is overwritten" in again.stderr
        assert "1 photo into" in again.stderr
        assert placed[0].read_text() == "of somebody else"


def test_without_an_address_the_embedded_server_is_started_for_the_run(
    triton: Any, skimage_photos: list[Path], tmp_path: Path
) -> None:
    with_triton = run(*skimage_photos, "--url", triton.grpc_url, "-f", "jsonl")
    assert with_triton.returncode == 0, with_triton.stderr
    alone = run(*skimage_photos, "-f", "jsonl", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    one = [json.loads(line) for line in with_triton.stdout.splitlines()]
    other = [json.loads(line) for line in alone.stdout.splitlines()]
    assert [row["file"] for row in one] == [str(path) for path in skimage_photos]
    assert [row["mean"] for row in one] == pytest.approx([row["mean"] for row in other], abs=1e-4)


@pytest.mark.parametrize("form", ["jsonl", "table"])
def test_on_a_terminal_the_bar_stays_out_of_the_results(folder: Path, url: str, form: str) -> None:
    import pty

    command = [sys.executable, "-m", "nima_client.cli.main", "score", str(folder), "-f", form]
    terminal, terminal_end = pty.openpty()
    environment = {**os.environ, "NIMA_URL": url, "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
    # Standard error is a terminal, standard output a pipe.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=terminal_end, env=environment
    ) as process:
        os.close(terminal_end)
        assert process.stdout is not None
        out = process.stdout.read().decode()
    seen = b""
    while True:
        try:
            seen += os.read(terminal, 4096)
        except OSError:  # Linux says so at the end
            break
    os.close(terminal)
    assert b"photos/s" in seen
    assert "\x1b" not in out
    if form == "jsonl":
        assert len([json.loads(line) for line in out.splitlines()]) == 4
        assert b"distribution" not in seen
    else:
        assert out.count("│") > 20


def test_what_was_scored_is_shown_although_the_server_went_away(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    from kserve_server import KServeServer

    from nima_client import RetryPolicy
    from nima_client.cli import _server

    # Time enough for a second attempt, which finds nobody.
    monkeypatch.setattr(_server, "PATIENT", RetryPolicy(budget_s=2.0))
    server = KServeServer()

    def stop(number: int, images: list[bytes], context: object) -> None:
        if number == 3:
            threading.Thread(target=server.stop).start()
            server._sleep(60.0, context)  # until it is cancelled

    server.behaviour = stop
    (folder / "0.jpg").write_bytes(b"no photo")
    failures = folder / "failures.jsonl"
    done = run(folder, "--in-flight", 1, "--failures", failures, url=server.url)
    assert done.returncode == 3
    assert [Path(json.loads(line)["file"]).name for line in failures.open()] == ["0.jpg"]
    assert "2.jpg" in done.stdout
    assert "A.JPEG" not in done.stdout
    assert "check that it runs" in done.stderr


def test_a_missing_package_names_the_smallest_extra_that_brings_it(
    folder: Path, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the photos are scored, not after."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SystemExit) as stopped:
        main(["score", str(folder), "--url", url, "-o", str(folder / "scores.parquet")])
    assert stopped.value.code == 2
    assert "'pyarrow', which the extra 'report' brings" in capsys.readouterr().err
    assert not list(folder.glob("scores*"))
