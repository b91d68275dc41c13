"""What is done with the chosen photos: placed, rated, and done again after an end half-way."""

from __future__ import annotations

import itertools
import os
import stat
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("typer", reason="the commands need the extra cli")

from score_command import run

from nima_client.library import actions
from nima_client.library.actions import Action, place, rate
from nima_client.library.files import read_rows
from nima_client.library.journal import Journal
from nima_client.library.rows import Row
from nima_client.library.sources import find_photos
from nima_client.library.xmp import read_rating

Photo = Callable[..., bytes]


def row(path: object, mean: float = 5.0) -> Row:
    return Row(str(path), mean, 1.0, None, (0.1,) * 10)


def test_a_moved_link_leads_where_it_led(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "album").mkdir()
    (tmp_path / "raw" / "x.jpg").write_bytes(b"x")
    relative, absolute = tmp_path / "album" / "r.jpg", tmp_path / "album" / "a.jpg"
    relative.symlink_to("../raw/x.jpg")
    absolute.symlink_to(tmp_path / "raw" / "x.jpg")
    placed = place([row(relative), row(absolute)], tmp_path / "else" / "where", Action.MOVE)
    assert [path.read_bytes() for path in placed] == [b"x", b"x"]
    assert all(path.is_symlink() for path in placed)
    assert list((tmp_path / "album").iterdir()) == []
    assert (tmp_path / "raw" / "x.jpg").exists()
    lost = tmp_path / "lost.jpg"
    lost.symlink_to("nowhere.jpg")
    with pytest.raises(FileNotFoundError):
        place([row(lost)], tmp_path / "else", Action.MOVE)


def test_links_to_photos_that_move_with_them_lead_there(tmp_path: Path) -> None:
    for number, order in enumerate(itertools.permutations(range(5))):
        move_with_links(tmp_path / str(number), order)


def move_with_links(tmp_path: Path, order: tuple[int, ...]) -> None:
    photos, best = tmp_path / "photos", tmp_path / "best"
    (photos / "in").mkdir(parents=True)
    (tmp_path / "alias").symlink_to("photos")
    (photos / "in" / "a.jpg").write_bytes(b"a")
    (photos / "stays.jpg").write_bytes(b"stays")
    for name, to in (
        ("relative.jpg", "in/a.jpg"), ("absolute.jpg", tmp_path / "alias" / "in" / "a.jpg"),
        ("other.jpg", "stays.jpg"), ("link.jpg", "unchosen.jpg"), ("unchosen.jpg", "relative.jpg"),
    ):  # fmt: skip
        (photos / name).symlink_to(to)
    names = ("in/a.jpg", "relative.jpg", "absolute.jpg", "other.jpg", "link.jpg")
    rows = [row(photos / names[number]) for number in order]
    placed = place(rows, best, Action.MOVE)
    assert [path.name[9:] for path in placed] == [Path(names[n]).name for n in order]
    assert [path.read_bytes() for path in placed] == [b"stays" if n == 3 else b"a" for n in order]
    assert [path.is_symlink() for path in placed] == [n != 0 for n in order]
    assert {path.name for path in photos.iterdir()} == {"in", "stays.jpg", "unchosen.jpg"}
    best.rename(tmp_path / "elsewhere")  # what moved together stays together
    moved = [tmp_path / "elsewhere" / path.name for path in placed]
    assert [path.exists() for path in moved] == [True] * 5
    assert place(rows, tmp_path / "elsewhere", Action.MOVE) == moved  # done already


def test_a_link_to_a_photo_that_could_not_move_leads_to_where_it_is(tmp_path: Path) -> None:
    best, told = tmp_path / "best", []
    best.mkdir()
    (tmp_path / "a.jpg").write_bytes(b"a")
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    (best / "002_5.00_a.jpg").write_bytes(b"another")
    rows = [row(tmp_path / "b.jpg"), row(tmp_path / "a.jpg")]
    (placed,) = place(rows, best, Action.MOVE, report=lambda r, _: told.append(r.file))
    assert told == [str(tmp_path / "a.jpg")]
    assert placed.read_bytes() == b"a"


def test_ranks_sort_beyond_999(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    rows = [row(tmp_path / "a.jpg", 9 - number / 1000) for number in range(1001)]
    placed = place(rows, tmp_path / "best", Action.LINK)
    assert [path.name for path in placed] == sorted(path.name for path in placed)
    assert placed[0].name.startswith("0001_")
    assert place(rows[:2], tmp_path / "few", Action.LINK)[0].name.startswith("001_")


def test_the_folders_of_many_sidecars_are_flushed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = [tmp_path / folder / f"{n}.jpg" for folder in "ab" for n in range(20)]
    for photo in photos:
        photo.parent.mkdir(exist_ok=True)
        photo.write_bytes(b"x")
    flushed = []

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            flushed.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", fsync)
    assert rate(list(map(row, photos))) == 40
    assert sorted(flushed) == sorted((tmp_path / folder).stat().st_ino for folder in "ab")


@pytest.mark.parametrize("action", list(Action))
@pytest.mark.parametrize("letter", ["a", "é"])
def test_long_names_are_cut_to_fit(tmp_path: Path, action: Action, letter: str) -> None:
    stem = letter * (240 // len(letter.encode()))
    photo = tmp_path / f"{stem}.jpg"
    photo.write_bytes(b"x")
    assert rate([row(photo)]) == 1
    (placed,) = place([row(photo)], tmp_path / "best", action)
    assert placed.read_bytes() == b"x"
    assert placed.name.endswith(f"{letter}.jpg")
    assert read_rating(placed) == 3
    assert len(list((tmp_path / "best").iterdir())) == 2


def test_a_photo_moves_whole_or_not_at_all_onto_another_disk(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no tmpfs beside the disk of the tests")
    photo = tmp_path / "a.jpg"
    photo.write_bytes(bytes(30_000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))  # as a full disk would
        try:
            with pytest.raises(OSError, match="too large"):
                place([row(photo)], Path(folder), Action.MOVE)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert list(Path(folder).iterdir()) == []
        (placed,) = place([row(photo)], Path(folder), Action.MOVE)
        assert placed.stat().st_size == 30_000
        assert not photo.exists()


def test_one_bad_photo_does_not_keep_the_others(tmp_path: Path) -> None:
    for name in ("a.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(b"x")
    rows = [row(tmp_path / name) for name in ("a.jpg", "gone.jpg", "c.jpg")]
    told: list[str] = []
    placed = place(
        rows, tmp_path / "best", Action.COPY, report=lambda r, error: told.append(r.file)
    )
    assert [path.name[:3] for path in placed] == ["001", "003"]
    assert told == [str(tmp_path / "gone.jpg")]
    assert rate(rows, report=lambda r, error: told.append(str(error))) == 2
    assert "no such file" in told[1]
    assert not (tmp_path / "gone.jpg.xmp").exists()


def test_two_photos_of_one_escaped_name_are_told_apart(
    tmp_path: Path, photo: Photo, url: str
) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    raw = Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9.jpg"))
    literal = root / "caf\\xe9.jpg"
    for number, path in enumerate((raw, literal)):
        path.write_bytes(photo(number))
    done = run(root, "--xmp", "--copy-to", tmp_path / "best", url=url)
    assert done.returncode == 0, done.stderr
    assert {read_rating(raw), read_rating(literal)} <= set(range(1, 6))
    copies = [path for path in (tmp_path / "best").iterdir() if path.suffix == ".jpg"]
    assert {path.read_bytes() for path in copies} == {photo(0), photo(1)}


def test_a_finished_run_does_what_is_asked_of_its_photos(
    folder: Path, url: str, tmp_path: Path
) -> None:
    output, best = tmp_path / "scores.txt", tmp_path / "best"
    arguments = (folder, "-f", "csv", "-o", output, "--resume")
    assert run(*arguments, url=url).returncode == 0
    before = output.stat().st_mtime_ns
    done = run(*arguments, "--xmp", "--copy-to", best, "--top", 2, url="127.0.0.1:1")
    assert done.returncode == 0, done.stderr
    assert "is finished" in done.stderr
    assert sorted(path.suffix for path in best.iterdir()) == [".jpg", ".jpg", ".xmp", ".xmp"]
    assert output.stat().st_mtime_ns == before
    again = run(*arguments, "--copy-to", best, "--top", 2, url="127.0.0.1:1")
    assert again.returncode == 0, again.stderr


def test_photos_in_archives_are_told_where_they_have_no_file(
    folder: Path, url: str, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(folder / "1.jpg", "inside.jpg")
    for options in (("--copy-to", tmp_path / "best"), ("--xmp",)):
        done = run(folder, tmp_path / "shard.tar", *options, url=url)
        assert done.returncode == 0, done.stderr
        assert "1 photo inside archives passed over" in done.stderr
    assert len(list((tmp_path / "best").iterdir())) == 4
    assert "archives" not in run(tmp_path / "shard.tar", url=url).stderr


@pytest.mark.parametrize("action", list(Action))
def test_what_ended_half_way_is_done_by_resuming(
    folder: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: Action
) -> None:
    output, best = tmp_path / "scores.jsonl", tmp_path / "best"
    arguments = (folder, "-o", output, "--resume", "--xmp", f"--{action.value}-to", best)
    ordinary = actions._place_one
    calls = 0

    def stopped(*given: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:  # two photos with their sidecars are eight
            raise KeyboardInterrupt
        ordinary(*given)

    with monkeypatch.context() as patch:
        patch.setattr(actions, "_place_one", stopped)
        done = run(*arguments, "--sort=-mean", url=url)
    assert done.returncode == 130
    assert output.with_name("scores.jsonl.journal").exists()
    rows = read_rows(output)
    done = run(*arguments, "--sort=-mean", url=url)
    assert done.returncode == 0, done.stderr
    assert "4 were there already" in done.stderr
    assert len(list(best.iterdir())) == 8
    assert read_rows(output) == rows
    assert not output.with_name("scores.jsonl.journal").exists()


@pytest.mark.parametrize("pattern", [".", "**/*.[jJ]*"])
def test_a_run_that_has_moved_every_photo_can_go_on(
    folder: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    output, best = tmp_path / "scores.jsonl", tmp_path / "best"
    arguments = (folder / pattern, "-o", output, "--resume", "--move-to", best)

    def stopped(_journal: Journal) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "remove", stopped)
        assert run(*arguments, url=url).returncode == 130
    moved, scores = sorted(best.iterdir()), output.read_text()
    assert len(moved) == 4
    assert Journal.beside(output).path.exists()
    done = run(*arguments, url=url)
    assert done.returncode == 0, done.stderr
    assert not Journal.beside(output).path.exists()
    finished = run(*arguments, url="127.0.0.1:1")
    assert finished.returncode == 0, finished.stderr
    assert "is finished" in finished.stderr
    assert (sorted(best.iterdir()), output.read_text()) == (moved, scores)
    # Where nothing has begun, a folder without photos is a mistake.
    assert run(folder / pattern, "-o", tmp_path / "new.csv", "--resume", url=url).returncode == 2


@pytest.mark.parametrize("action", ["copy", "link", "move"])
def test_a_folder_that_cannot_be_is_told_before_anything_is_scored(
    folder: Path, tmp_path: Path, action: str
) -> None:
    (tmp_path / "file").touch()
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        done = run(folder, f"--{action}-to", target, url="127.0.0.1:1")
        assert done.returncode == 2
        assert "is not a folder" in done.stderr


def test_failures_do_not_overwrite_the_scores(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    (tmp_path / "link.csv").symlink_to(output)
    for failures in (output, tmp_path / "link.csv", tmp_path / "out.csv.journal"):
        done = run(folder, "-o", output, "--failures", failures, url="127.0.0.1:1")
        assert done.returncode == 2
        assert "would overwrite the scores" in done.stderr
    assert not output.exists()


def test_a_photo_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    """``-o *.jpg``: the shell makes of it the output and the photos."""
    photos = sorted(folder.glob("*.jpg"))
    linked = tmp_path / "scores.csv"
    linked.symlink_to(photos[1])
    (tmp_path / "no ending").hardlink_to(photos[1])
    before = [photo.read_bytes() for photo in photos]
    for output in (photos[0], photos[1], linked, tmp_path / "no ending"):
        for options in (("-f", "csv", "-o", output), ("--failures", output)):
            done = run(*options, *photos[1:], url="127.0.0.1:1")
            assert done.returncode == 2
            assert "is a photo: name another file" in done.stderr
    assert [photo.read_bytes() for photo in photos] == before


@pytest.mark.parametrize("action", ["copy", "link"])
@pytest.mark.parametrize("pattern", ["**/*.[jJ]*", "**", "*"])
def test_a_pattern_does_not_lead_to_the_copies_either(
    folder: Path, tmp_path: Path, pattern: str, action: str
) -> None:
    best = folder / "best"
    before = find_photos([folder / pattern]).files
    place([row(path) for path in before], best, Action(action))
    assert set(find_photos([folder / pattern], left_out=best).files) == set(before)
    assert len(find_photos([folder / pattern]).files) == 2 * len(before)
    # Who names them means them.
    for named in (best, best / "*", next(best.iterdir())):
        assert find_photos([named], left_out=best).files


def test_copies_below_the_photos_are_not_photos_of_the_next_run(
    folder: Path, url: str, tmp_path: Path
) -> None:
    for _ in range(2):
        done = run(folder, "--copy-to", folder / "best", "-o", tmp_path / "out.csv", url=url)
        assert done.returncode == 0, done.stderr
        assert len(read_rows(tmp_path / "out.csv")) == 4
        assert len(list((folder / "best").iterdir())) == 4
    assert "8 photos scored" in run(folder, url=url).stderr
