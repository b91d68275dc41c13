"""Photos whose names are not UTF-8: results write them escaped, commands still find the file."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nima_client import NimaClient
from nima_client._names import display_name, named_path
from nima_client.library.actions import Action, place, rate
from nima_client.library.rows import Row
from nima_client.library.run import score_photos
from nima_client.library.sources import find_photos
from nima_client.testing import FakeTransport

Photo = Callable[..., bytes]


@pytest.fixture
def album(tmp_path: Path, photo: Photo) -> Path:
    """A folder with such a name that holds such a photo, an ordinary one, and a tar shard."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9t\xe9"))
    folder.mkdir()
    for number, name in enumerate((b"caf\xe9.jpg", b"b.jpg")):
        (folder / os.fsdecode(name)).write_bytes(photo(number))
    with tarfile.open(folder / "shard.tar", "w") as tar:
        tar.add(folder / "b.jpg", os.fsdecode(b"in/na\xefve.jpg"))
    return folder


def scored(folder: Path) -> list[Row]:
    with NimaClient(transport=FakeTransport()) as client:
        rows = list(score_photos(client, find_photos([folder])))
    assert all(isinstance(row, Row) for row in rows)
    return rows  # type: ignore[return-value]


def files(folder: Path) -> set[bytes]:
    return {os.fsencode(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_name_leads_back_to_its_file(album: Path) -> None:
    path = album / os.fsdecode(b"caf\xe9.jpg")
    name = display_name(path)
    name.encode()
    assert name.endswith("/\\xe9t\\xe9/caf\\xe9.jpg")
    assert named_path(name) == path
    # A name may hold a backslash itself.
    literal = album / "caf\\xe9.jpg"
    literal.touch()
    assert named_path(str(literal)) == literal
    mixed = album / os.fsdecode(b"back\\xe9slash-\xe9.jpg")
    for odd in (display_name(mixed), "nowhere\\xe9.jpg", "\ud800\\xe9", "nul\0\\xe9"):
        assert named_path(odd) == Path(odd)


def test_ratings_go_beside_the_photo(album: Path) -> None:
    before = files(album.parent)
    assert rate(scored(album)) == 2
    made = {os.fsencode(album.name) + name for name in (b"/caf\xe9.jpg.xmp", b"/b.jpg.xmp")}
    assert files(album.parent) - before == made


@pytest.mark.parametrize("action", list(Action))
def test_chosen_photos_are_placed_with_their_sidecars(album: Path, action: Action) -> None:
    source = album / os.fsdecode(b"caf\xe9.jpg")
    data = source.read_bytes()
    rows = scored(album)
    rate(rows)
    target = album.parent / "best"
    placed = place(rows, target, action)
    assert len(placed) == 2
    (there,) = (path for path in placed if os.fsencode(path).endswith(b"_caf\xe9.jpg"))
    assert there.read_bytes() == data
    assert sum(name.endswith(b"\xe9.jpg.xmp") for name in files(target)) == 1
    assert source.exists() == (action is not Action.MOVE)


def test_the_report_shows_their_pictures(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nima_client.report.thumbnails import Thumbnails

    names = [row.file for row in scored(album)]
    assert len(names) == 3
    assert all(picture for _, picture in Thumbnails().make(names))
    relative = [os.path.relpath(name, display_name(album)) for name in names]
    assert all(picture for _, picture in Thumbnails(root=album).make(relative))
    monkeypatch.chdir(album)
    assert all(picture for _, picture in Thumbnails().make(relative))
    gone = ["none\\xe9.jpg", "\ud800.jpg", "nul\0.jpg"]
    assert [picture for _, picture in Thumbnails().make(gone)] == [None] * 3


def test_results_convert_to_text_that_can_be_written(album: Path, tmp_path: Path) -> None:
    good, bad = album / os.fsdecode(b"caf\xe9.jpg"), album / os.fsdecode(b"gone\xe9.jpg")
    with NimaClient(transport=FakeTransport()) as client:
        results: list[Any] = client.score([good, bad], on_error="return")
    assert results[0].source == str(good)  # what open() takes
    path = tmp_path / "results.jsonl"
    path.write_text("".join(result.to_json() + "\n" for result in results), encoding="utf-8")
    first, second = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    assert first["source"] == display_name(good)
    assert second["source"] == display_name(bad)
    assert second["message"].startswith(display_name(bad))


def test_results_convert_to_arrow(album: Path) -> None:
    pytest.importorskip("pyarrow")
    from nima_client.tables import to_arrow

    paths = [album / os.fsdecode(name) for name in (b"caf\xe9.jpg", b"gone\xe9.jpg")]
    with NimaClient(transport=FakeTransport()) as client:
        table = to_arrow(client.score(paths, on_error="return"))
    assert table.column("source").to_pylist() == [display_name(path) for path in paths]


def test_results_convert_to_pandas(album: Path, tmp_path: Path) -> None:
    """Whose strings are those of Arrow from version 3 on: one such name lost the whole frame."""
    pytest.importorskip("pandas")
    from nima_client.tables import to_pandas

    paths = [album / os.fsdecode(name) for name in (b"caf\xe9.jpg", b"gone\xe9.jpg")]
    with NimaClient(transport=FakeTransport()) as client:
        frame = to_pandas(client.score([*paths, b""], on_error="return"))
    assert frame["source"].tolist()[:2] == [display_name(path) for path in paths]
    assert frame["code"].tolist()[1:] == ["UNREADABLE", "EMPTY"]
    assert frame["message"][1].startswith(display_name(paths[1]))
    frame.to_csv(tmp_path / "scores.csv")
    assert display_name(paths[0]) in (tmp_path / "scores.csv").read_text(encoding="utf-8")
