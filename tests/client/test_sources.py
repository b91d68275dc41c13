"""Where photos come from, and what is said of those that cannot be had."""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nima_client import NimaClient
from nima_client.library.folders import SourceError
from nima_client.library.rows import FailedRow, Row
from nima_client.library.run import Outcome, score_photos
from nima_client.library.sources import find_photos, read_tar
from nima_client.testing import FakeTransport

Photo = Callable[..., bytes]


def scored(*paths: Path) -> list[Outcome]:
    with NimaClient(transport=FakeTransport()) as client:
        return list(score_photos(client, find_photos(paths)))


def shard(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def members(photo: Photo) -> list[tuple[str, bytes]]:
    return [(f"{number}.jpg", photo(number, size=(400, 300))) for number in range(4)]


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [(".tar", "w"), (".tar.gz", "w:gz"), (".tar.bz2", "w:bz2"), (".tar.xz", "w:xz")],
)
def test_a_damaged_archive_is_one_failure_and_the_rest_is_scored(
    tmp_path: Path, members: list[tuple[str, bytes]], photo: Photo, suffix: str, mode: str
) -> None:
    (tmp_path / "a.jpg").write_bytes(photo(9))
    broken = shard(tmp_path / f"0{suffix}", members, mode)
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 3])
    shard(tmp_path / f"1{suffix}", members, mode)
    outcomes = scored(tmp_path)
    assert [o.file for o in outcomes if isinstance(o, FailedRow)] == [str(broken)]
    (failure,) = (o for o in outcomes if isinstance(o, FailedRow))
    assert failure.code == "UNREADABLE"
    assert failure.message.startswith("not a readable tar archive")
    good = [o.file for o in outcomes if isinstance(o, Row)]
    assert good[0] == str(tmp_path / "a.jpg")
    assert good[-4:] == [f"{tmp_path}/1{suffix}/{number}.jpg" for number in range(4)]


@pytest.mark.parametrize("damage", ["cut", "overwritten"])
def test_a_damaged_header_is_not_taken_for_the_end(
    tmp_path: Path, members: list[tuple[str, bytes]], damage: str
) -> None:
    path = shard(tmp_path / "0.tar", members)
    with tarfile.open(path) as tar:
        start = tar.getmember("2.jpg").offset
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[start + 100 :]
    else:
        data[start : start + 512] = b"\xa5" * 512
    path.write_bytes(data)
    outcomes = scored(path)
    assert [Path(o.file).name for o in outcomes] == ["0.jpg", "1.jpg", "0.tar"]
    assert isinstance(outcomes[-1], FailedRow)


def test_an_archive_that_ends_without_zeros_is_whole(
    tmp_path: Path, members: list[tuple[str, bytes]]
) -> None:
    path = shard(tmp_path / "0.tar", members)
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    end = last.offset_data + -(-last.size // 512) * 512
    path.write_bytes(path.read_bytes()[:end])
    assert all(isinstance(outcome, Row) for outcome in scored(path))


def test_members_of_one_name_stay_apart(tmp_path: Path, photo: Photo) -> None:
    path = shard(tmp_path / "0.tar", [("a.jpg", photo(n)) for n in range(3)] + [("b.jpg", b"")])
    names = [f"{path}/a.jpg", f"{path}/a.jpg#2", f"{path}/a.jpg#3", f"{path}/b.jpg"]
    assert [photo.name for photo in read_tar(path)] == names
    assert [photo.data for photo in read_tar(path)][1] == photo(1)


def test_files_of_one_escaped_name_stay_apart(tmp_path: Path, photo: Photo) -> None:
    raw = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg"))
    literal = tmp_path / "caf\\xe9.jpg"
    for number, path in enumerate((raw, literal)):
        path.write_bytes(photo(number))
    found = find_photos([raw, literal])
    assert found.named == {f"{literal}#2": raw, str(literal): literal}
    assert [photo.path for photo in found] == [raw, literal]


@pytest.fixture
def shut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder called ``trip`` may not be read."""
    ordinary: Any = os.scandir

    def scandir(path: Any) -> Any:
        if os.path.normpath(path).endswith("trip"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return ordinary(path)

    monkeypatch.setattr(os, "scandir", scandir)  # the superuser may read everything


def test_a_folder_that_may_not_be_read_is_a_failure(folder: Path, shut: None) -> None:
    found = find_photos([folder])
    assert found.known_total == 4
    outcomes = scored(folder)
    assert [Path(o.file).name for o in outcomes] == ["1.jpg", "2.jpg", "10.jpg", "trip"]
    failure = outcomes[-1]
    assert isinstance(failure, FailedRow)
    assert failure.code == "UNREADABLE"
    assert "Permission denied" in failure.message
    assert [type(o) for o in scored(folder / "trip")] == [FailedRow]


@pytest.mark.parametrize(
    ("pattern", "others"),
    [
        ("**/*.jpg", ["1.jpg", "10.jpg", "2.jpg"]),
        ("**", ["1.jpg", "2.jpg", "10.jpg"]),
        ("*/*.jpg", []),
        ("t*/**/?.jpg", []),
        ("**/deep/*.jpg", []),
        ("trip/*.jpg", []),
    ],
)
def test_a_folder_of_a_pattern_that_may_not_be_read_is_a_failure(
    folder: Path, shut: None, pattern: str, others: list[str]
) -> None:
    outcomes = scored(folder / pattern)
    assert [Path(o.file).name for o in outcomes] == [*others, "trip"]
    assert isinstance(outcomes[-1], FailedRow)
    assert "Permission denied: its photos are not known" in outcomes[-1].message


@pytest.fixture
def as_another_user(photo: Photo) -> Iterator[Path]:
    """A folder of folders, as one sees it who may list one, and not even that of the other."""
    if os.geteuid() != 0:
        pytest.skip("only the superuser may become another user")
    with tempfile.TemporaryDirectory() as name:  # pytest's own are shut to others
        folder = Path(name)
        for part in ("listed", "shut"):
            (folder / part / "in").mkdir(parents=True)
            (folder / part / "in" / "a.jpg").write_bytes(photo(1))
            (folder / part / "b.jpg").write_bytes(photo(2))
        (folder / "c.jpg").write_bytes(photo(3))
        for part, mode in ((".", 0o755), ("listed", 0o744), ("shut", 0o700), ("c.jpg", 0o644)):
            (folder / part).chmod(mode)
        os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(0)


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("**/*.jpg", ["c.jpg", "listed", "listed/b.jpg", "shut"]),
        ("*/in/*.jpg", ["listed/in", "shut/in"]),
        ("*/b.jpg", ["listed/b.jpg", "shut/b.jpg"]),
        ("shut/in/*.jpg", ["shut/in"]),
        ("shut/b.jpg", ["shut/b.jpg"]),
    ],
)
def test_what_a_folder_keeps_from_others_is_told(
    as_another_user: Path, argument: str, told: list[str]
) -> None:
    outcomes = scored(as_another_user / argument)
    assert sorted(os.path.relpath(o.file, as_another_user) for o in outcomes) == told
    assert all(isinstance(o, FailedRow) is not o.file.endswith("/c.jpg") for o in outcomes)


def test_an_empty_argument_names_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(SourceError, match="empty argument"):
        find_photos([""])
    assert len(find_photos(["."]).files) == 4


def test_photos_of_other_formats_are_counted(folder: Path, photo: Photo) -> None:
    for name in ("a.JXL", "b.jxl", "c.cr2", ".hidden.jxl", "trip/notes.raw.txt"):
        (folder / name).write_bytes(b"x")
    shard(folder / "s.tar", [("x.nef", b"x"), ("y.jpg", photo(1))])
    found = find_photos([folder, folder])  # once each
    assert found.passed_over == {".jxl": 2, ".cr2": 1}
    assert len(list(found)) == 5
    assert found.passed_over == {".jxl": 2, ".cr2": 1, ".nef": 1}
    assert find_photos([str(folder / "*.jxl"), folder / "1.jpg"]).passed_over == {".jxl": 1}
    # Who names one is told why it has no score.
    named = find_photos([folder / "c.cr2", folder])
    assert named.files[0] == folder / "c.cr2"
    assert named.passed_over == {".jxl": 2}
    with pytest.raises(SourceError, match=r"1 passed over: \.jxl \(1\)"):
        find_photos([str(folder / "*.JXL")])


def test_links_within_an_archive_are_counted(tmp_path: Path, photo: Photo) -> None:
    """``ln a.jpg b.jpg; tar cf …``: the bytes of the second are the first's, which have gone by."""
    (tmp_path / "a.jpg").write_bytes(photo(1))
    (tmp_path / "b.jpg").hardlink_to(tmp_path / "a.jpg")
    (tmp_path / "c.jpg").symlink_to("a.jpg")
    (tmp_path / "c.txt").symlink_to("a.jpg")
    with tarfile.open(tmp_path / "linked.tar", "w") as tar:
        for name in ("a.jpg", "b.jpg", "c.jpg", "c.txt"):
            tar.add(tmp_path / name, name)
    found = find_photos([tmp_path / "linked.tar"])
    assert [photo.name for photo in found] == [f"{tmp_path}/linked.tar/a.jpg"]
    assert found.passed_over == {"links in archives": 2}


def test_pipes_and_devices_of_a_folder_are_no_photos(folder: Path) -> None:
    os.mkfifo(folder / "pipe.jpg")
    os.mkfifo(folder / "pipe.tar")
    (folder / "null.jpg").symlink_to("/dev/null")
    (folder / "link.jpg").symlink_to("1.jpg")
    (folder / "nowhere.jpg").symlink_to("none.jpg")
    names = {path.name for path in find_photos([folder]).files}
    assert names == {"1.jpg", "2.jpg", "10.jpg", "A.JPEG", "link.jpg", "nowhere.jpg"}
    assert find_photos([folder]).archives == ()
    assert len(find_photos([str(folder / "p*"), folder / "1.jpg"]).files) == 1


@pytest.fixture
def mixed(tmp_path: Path, members: list[tuple[str, bytes]], folder: Path) -> Path:
    broken = shard(folder / "0.tar", members)
    broken.write_bytes(broken.read_bytes()[:2000])
    shard(folder / "1.tar", [*members, members[0]])
    (folder / "x.jxl").touch()
    return folder


def test_the_command_tells_all_of_it(mixed: Path, url: str, tmp_path: Path) -> None:
    pytest.importorskip("typer", reason="the commands need the extra cli")
    from score_command import run

    from nima_client.library.files import read_rows

    output, failures = tmp_path / "out.csv", tmp_path / "failures.jsonl"
    done = run(mixed, "-o", output, "--failures", failures, url=url)
    assert done.returncode == 1
    assert f"{mixed}/0.tar: UNREADABLE: not a readable tar archive" in done.stderr
    assert "1 passed over: .jxl (1)" in done.stderr
    assert len(read_rows(output)) == 4 + 5
    assert [json.loads(line)["code"] for line in failures.read_text().splitlines()] == [
        "UNREADABLE"
    ]
    whole = output.read_bytes()
    # A run that was killed after some of the photos of one name.
    lines = run(mixed, "-f", "jsonl", url=url).stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    journal = output.with_name("out.csv.journal")
    head = {"journal": 1, "checkpoint_sha256": rows[0]["checkpoint_sha256"]}
    kept = [head, *({"score": row} for row in rows[:6])]
    journal.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
    done = run(mixed, "-o", output, "--resume", url=url)
    assert done.returncode == 1, done.stderr
    assert "6 were there already" in done.stderr
    assert output.read_bytes() == whole
    done = run("", url=url)
    assert done.returncode == 2
    assert "empty argument" in done.stderr
