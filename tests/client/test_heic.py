"""HEIC: turned into JPEG by the client, where the extra is installed."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from heic_files import ALPHA, PLAIN
from PIL import Image

from nima_client import _heic
from nima_client._images import PrepareOptions, is_instant, prepare
from nima_client.errors import ImageRejectedError
from nima_client.library.formats import passed_over_text
from nima_client.library.sources import find_photos
from nima_client.preprocess import DEFAULT_LIMITS, Limits
from nima_client.report.thumbnails import Thumbnails

OPTIONS = PrepareOptions(DEFAULT_LIMITS)


@pytest.fixture
def extra() -> None:
    pytest.importorskip("pi_heif", reason="HEIC needs the extra heic")


@pytest.fixture
def no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_heic, "can_read", lambda: False)


def pixels_of(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    assert image.format == "JPEG"
    return np.asarray(image).astype(int)


def test_a_heic_travels_as_a_jpeg_of_the_same_pixels(extra: None, tmp_path: Path) -> None:
    path = tmp_path / "IMG_0001.HEIC"
    path.write_bytes(PLAIN)
    prepared = prepare(path, OPTIONS)
    assert prepared.source == str(path)
    pixels = pixels_of(prepared.data)
    assert pixels.shape == (32, 48, 3)
    assert np.abs(pixels[3, 3] - (230, 20, 20)).max() < 12
    # Red grows to the right, green downwards.
    assert pixels[28, 44, 0] > 200 > 100 > pixels[28, 2, 0]
    assert pixels[28, 44, 1] > 200 > 100 > pixels[2, 44, 1]
    assert prepare(io.BytesIO(PLAIN), OPTIONS).data == prepared.data


def test_transparent_parts_are_white(extra: None) -> None:
    pixels = pixels_of(prepare(ALPHA, OPTIONS).data)
    assert pixels[4, 4].min() > 245
    assert np.abs(pixels[28, 44] - pixels_of(prepare(PLAIN, OPTIONS).data)[28, 44]).max() < 25


def test_the_limits_hold(extra: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for limits in (Limits(max_pixels=1000), Limits(max_bytes=100)):
        with pytest.raises(ImageRejectedError, match="limit is") as caught:
            prepare(PLAIN, PrepareOptions(limits))
        assert caught.value.code == "TOO_LARGE"
    smaller = PrepareOptions(DEFAULT_LIMITS, max_side=24)
    assert pixels_of(prepare(PLAIN, smaller).data).shape == (16, 24, 3)


def test_damaged_files_are_refused(extra: None) -> None:
    for length in (12, 40, 200, len(PLAIN) - 100):
        with pytest.raises(ImageRejectedError, match="corrupt HEIC") as caught:
            prepare(PLAIN[:length], OPTIONS)
        assert caught.value.code == "UNDECODABLE"


def test_an_event_loop_does_not_decode_it() -> None:
    assert not is_instant(PLAIN)
    assert not is_instant(memoryview(PLAIN))
    assert is_instant(b"\xff\xd8\xff")


def test_without_the_extra_the_message_names_it(no_extra: None) -> None:
    with pytest.raises(ImageRejectedError, match=r"nima-triton\[heic\]") as caught:
        prepare(PLAIN, OPTIONS)
    assert caught.value.code == "UNSUPPORTED"


def test_avif_is_not_taken_for_heic() -> None:
    assert not _heic.is_heic(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf")
    assert not _heic.is_heic(b"\0\0\0\x1cftypavif\0\0\0\0mif1avif")
    assert not _heic.is_heic(b"")


def test_a_page_shows_it(extra: None, tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(PLAIN)
    [(_, picture)] = Thumbnails(root=tmp_path).make(["a.heic"])
    assert picture is not None
    assert picture.startswith("data:image/jpeg;base64,")


def test_folders_give_them_where_they_can_be_read(
    extra: None, folder: Path, photo: Callable[..., bytes]
) -> None:
    (folder / "IMG_0001.HEIC").write_bytes(PLAIN)
    found = find_photos([folder])
    assert str(folder / "IMG_0001.HEIC") in [image.name for image in found]
    assert not found.passed_over


def test_folders_pass_over_them_where_they_cannot(no_extra: None, folder: Path) -> None:
    (folder / "IMG_0001.HEIC").write_bytes(PLAIN)
    found = find_photos([folder])
    assert str(folder / "IMG_0001.HEIC") not in [image.name for image in found]
    assert found.passed_over == {".heic": 1}
    assert "nima-triton[heic]" in passed_over_text(found.passed_over)


def test_the_command_scores_them(extra: None, tmp_path: Path, url: str) -> None:
    (tmp_path / "a.heic").write_bytes(PLAIN)
    command = [sys.executable, "-m", "nima_client.cli.main", "score", str(tmp_path), "--url", url]
    done = subprocess.run([*command, "-f", "jsonl"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "a.heic" in done.stdout
