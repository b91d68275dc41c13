"""A move onto another disk that was killed between the copy and the deletion."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from nima_client.library.actions import Action, place, rate
from nima_client.library.rows import Row


def row(path: object) -> Row:
    return Row(str(path), 5.0, 1.0, None, (0.1,) * 10)


def test_a_move_killed_before_the_source_was_deleted_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, best = tmp_path / "photos", tmp_path / "best"
    photos.mkdir()
    (tmp_path / "else.jpg").write_bytes(b"else")
    names = ("a.jpg", "to_a.jpg", "to_else.jpg")
    (photos / names[0]).write_bytes(b"a")
    (photos / names[1]).symlink_to("a.jpg")
    (photos / names[2]).symlink_to("../else.jpg")
    rate(rows := [row(photos / name) for name in names])
    ordinary = Path.unlink

    def rename(_source: Path, _target: Path) -> None:
        raise OSError(errno.EXDEV, "another disk")

    deleted = 0

    def killed(path: Path, missing_ok: bool = False) -> None:
        nonlocal deleted
        if path.parent == photos:
            deleted += 1
            if deleted == 2 or not begun:
                raise KeyboardInterrupt
        ordinary(path, missing_ok)

    monkeypatch.setattr(os, "rename", rename)
    for done in range(6):  # three photos and their sidecars
        deleted, begun = 0, done > 0
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", killed)
            with pytest.raises(KeyboardInterrupt):
                place(rows, best, Action.MOVE)
        assert len(list(photos.iterdir())) == 6 - done
    placed = place(rows, best, Action.MOVE)
    assert [path.read_bytes() for path in placed] == [b"a", b"a", b"else"]
    assert len(list(best.iterdir())) == 6


@pytest.mark.parametrize("resumed", [False, True])
def test_a_move_deletes_nothing_whose_copy_a_power_cut_would_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumed: bool
) -> None:
    photo, best = tmp_path / "a.jpg", tmp_path / "best"
    photo.write_bytes(b"a")
    if resumed:
        place([row(photo)], best, Action.COPY)
    flushed = []
    ordinary = Path.unlink

    def rename(_source: Path, _target: Path) -> None:
        raise OSError(errno.EXDEV, "another disk")

    def flush(descriptor: int) -> None:
        flushed.append(os.fstat(descriptor).st_ino)

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path == photo:
            (copy,) = best.iterdir()
            assert flushed == [copy.stat().st_ino, best.stat().st_ino]
        ordinary(path, missing_ok)

    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "unlink", unlink)
    (copy,) = place([row(photo)], best, Action.MOVE)
    assert not photo.exists()
    assert copy.read_bytes() == b"a"

    def refuse(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    photo.write_bytes(b"a")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        place([row(photo)], best, Action.MOVE)
    assert photo.read_bytes() == b"a"


def test_a_move_deletes_nothing_that_has_no_copy(tmp_path: Path) -> None:
    photo, best = tmp_path / "a.jpg", tmp_path / "best"
    best.mkdir()
    photo.write_bytes(b"a")
    target = best / "001_5.00_a.jpg"
    for make in (
        lambda: target.write_bytes(b"b"),
        lambda: target.symlink_to(photo),
        lambda: target.hardlink_to(photo),
        lambda: target.mkdir(),
    ):
        make()
        with pytest.raises(FileExistsError, match="nothing is overwritten"):
            place([row(photo)], best, Action.MOVE)
        assert photo.read_bytes() == b"a"
        target.rmdir() if target.is_dir() else target.unlink()
