"""Pictures of a report: of archives, of which little is held, and of photos that have none."""

from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("jinja2", reason="nima report needs the extra report")

from browser import Browser, chromium

from nima_client.library.rows import Row
from nima_client.library.sources import read_tar
from nima_client.report import ReportOptions, Thumbnails, build_page, thumbnails

Photo = Callable[..., bytes]


def row(file: str, rating: int = 5) -> Row:
    return Row(file, float(rating), 0.0, None, tuple(float(r == rating) for r in range(1, 11)))


@pytest.fixture
def shard(tmp_path: Path, photo: Photo) -> Path:
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(100):
            data = photo(number, size=(64, 48))
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_few_originals_of_an_archive_are_held_at_once(
    shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = threading.Lock()
    read = encoded = most = 0
    ordinary = Thumbnails._encode

    def encode(self: Thumbnails, data: bytes) -> str | None:
        nonlocal encoded
        with lock:
            encoded += 1
        return ordinary(self, data)

    def counted(archive: Path) -> object:
        nonlocal read, most
        for photo in read_tar(archive):
            with lock:
                read += 1
                most = max(most, read - encoded)
            yield photo

    monkeypatch.setattr(Thumbnails, "_encode", encode)
    monkeypatch.setattr(thumbnails, "read_tar", counted)
    names = [f"{shard}/{number}.jpg" for number in range(100)]
    made = list(Thumbnails().make(reversed(names)))
    assert [name for name, _ in made] == names[::-1]
    assert all(picture for _, picture in made)
    assert most <= thumbnails._WORKERS + 2


def test_a_damaged_archive_has_no_pictures_from_there_on(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    names = [f"{shard}/{number}.jpg" for number in (0, 99)]
    made = dict(Thumbnails().make(names))
    assert made[names[0]] is not None
    assert made[names[1]] is None


@pytest.mark.parametrize("member", ["a.jpg", "./a.jpg", "./sub/../b.jpg"])
@pytest.mark.parametrize("folder", ["", "../photos"])
def test_members_are_found_as_their_archive_calls_them(
    tmp_path: Path, photo: Photo, monkeypatch: pytest.MonkeyPatch, folder: str, member: str
) -> None:
    """``tar c .`` puts ``./`` before each."""
    home = tmp_path / "photos"
    home.mkdir()
    data = photo(1, size=(64, 48))
    with tarfile.open(home / "0.tar", "w") as tar:
        info = tarfile.TarInfo(member)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    monkeypatch.chdir(home)
    (name,) = (found.name for found in read_tar(Path(folder, "0.tar")))
    monkeypatch.chdir(tmp_path)
    for root in (home, Path("photos")):
        assert all(picture for _, picture in Thumbnails(root=root).make([name]))


@pytest.fixture
def page(tmp_path: Path, photo: Photo) -> Path:
    rows = []
    for number, name in enumerate(("rome/IMG_1.jpg", "paris/IMG_1.jpg", "paris/IMG_2.jpg")):
        path = tmp_path / "trips" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(number * 9, size=(640, 480)))
        rows.append(row(str(path), 9 - number))
    long = tmp_path / "trips" / f"{'long' * 20}.jpg"
    rows.append(row(str(long), 2))  # there is no such photo
    path = tmp_path / "report.html"
    path.write_text(build_page(rows, ReportOptions(), Thumbnails()), encoding="utf-8")
    return path


def test_photos_without_a_picture_and_of_equal_names(page: Path, tmp_path: Path) -> None:
    if chromium() is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    with Browser() as browser:
        browser.open(page)
        cards = "[...document.querySelectorAll('.card')]"
        texts = browser.run(
            f"{cards}.map(c => [...c.querySelectorAll('.name')].map(n => n.textContent))"
        )
        assert texts == [
            ["IMG_1.jpg", "rome/"], ["IMG_1.jpg", "paris/"], ["IMG_2.jpg"], ["long" * 20 + ".jpg"],
        ]  # fmt: skip
        assert browser.run(f"{cards}.map(c => c.title)") == [
            f"{tmp_path}/trips/{name}"
            for name in (
                "rome/IMG_1.jpg",
                "paris/IMG_1.jpg",
                "paris/IMG_2.jpg",
                "long" * 20 + ".jpg",
            )
        ]
        gone = (
            "[document.getElementById('detail-gone').offsetParent !== null, "
            "document.getElementById('detail-image').offsetParent !== null]"
        )
        browser.screenshot(tmp_path / "cards.png")
        browser.run(f"{cards}[3].click()")
        assert browser.run(gone) == [True, False]
        browser.screenshot(tmp_path / "gone.png")
        browser.press("ArrowLeft")
        assert browser.run(gone) == [False, True]
        browser.screenshot(tmp_path / "there.png")
        assert browser.complaints() == []
