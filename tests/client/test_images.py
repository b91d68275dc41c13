"""Inputs: every kind, every shape, the local limits, and smaller uploads."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nima_client import ImageRejectedError, Limits, NimaClient
from nima_client._images import PrepareOptions, prepare
from nima_client.preprocess import decode, inspect_header
from nima_client.testing import FakeTransport

OPTIONS = PrepareOptions(Limits())


def pixels_sent(image: Any, options: PrepareOptions = OPTIONS) -> np.ndarray:
    return np.asarray(decode(prepare(image, options).data))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


def test_arrays_arrive_pixel_for_pixel() -> None:
    rgb = noise(20, 30, 3)
    np.testing.assert_array_equal(pixels_sent(rgb), rgb)
    np.testing.assert_array_equal(pixels_sent(rgb[::-1, ::2]), rgb[::-1, ::2])  # not contiguous
    gray = noise(20, 30)
    as_rgb = np.repeat(gray[:, :, None], 3, 2)
    np.testing.assert_array_equal(pixels_sent(gray), as_rgb)
    np.testing.assert_array_equal(pixels_sent(gray[:, :, None]), as_rgb)
    rgba = np.dstack([rgb, np.full((20, 30), 255, np.uint8)])
    np.testing.assert_array_equal(pixels_sent(rgba), rgb)
    rgba[:, :, 3] = 0
    assert (pixels_sent(rgba) == 255).all()  # what is transparent is white


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "HSV", "LAB"]
)
def test_pil_images_of_every_mode(mode: str) -> None:
    image = Image.new(mode, (12, 8))
    assert pixels_sent(image).shape == (8, 12, 3)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pil_images_without_a_range_are_refused(mode: str) -> None:
    with pytest.raises(TypeError, match="RGB"):
        prepare(Image.new(mode, (12, 8)), OPTIONS)


def test_a_pil_image_is_scored_as_its_file_would_be(tmp_path: Path) -> None:
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(10, 20, 3)).save(path, exif=exif)
    with Image.open(path) as image:
        np.testing.assert_array_equal(pixels_sent(image), pixels_sent(path))
    assert pixels_sent(path).shape == (20, 10, 3)


@pytest.mark.parametrize(
    "carried",
    [{"exif": b"Exif\0\0no EXIF at all"}, {"icc_profile": bytes(2 << 20)}],  # of print: 1.8 MB
)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_what_a_picture_carries_along_is_no_reason_to_refuse_it(
    kind: str, carried: dict[str, bytes]
) -> None:
    picture = Image.fromarray(noise(10, 20, 3))
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    opened = Image.open(buffer)
    opened.info.update(carried)
    np.testing.assert_array_equal(pixels_sent(opened.copy()), pixels_sent(buffer.getvalue()))


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_16_bit_pil_images_keep_their_shades_in_either_byte_order(
    mode: str, tmp_path: Path
) -> None:
    shades = np.arange(0, 65536, 512, np.uint16).reshape(8, 16)
    stored = shades.astype({"I;16N": "=u2", "I;16B": ">u2"}.get(mode, "<u2"))
    image = Image.frombytes(mode, (16, 8), stored.tobytes())
    path = tmp_path / "shades.tif"
    Image.fromarray(shades).save(path)
    np.testing.assert_array_equal(pixels_sent(image), pixels_sent(path))
    image.getexif()[0x0112] = 6
    assert pixels_sent(image)[:, -1, 0].tolist() == pixels_sent(path)[0, :, 0].tolist()


def test_a_big_endian_tiff_is_scored_as_a_file_or_as_a_pil_image(tmp_path: Path) -> None:
    path = tmp_path / "big-endian.tif"
    shades = np.arange(0, 65536, 512, np.uint16).reshape(8, 16)
    Image.frombytes("I;16B", (16, 8), shades.astype(">u2").tobytes()).save(path)
    with Image.open(path) as image:
        assert image.mode == "I;16B"
        np.testing.assert_array_equal(pixels_sent(image), pixels_sent(path))


@pytest.mark.parametrize(
    "array", [noise(3, 10, 20), noise(10, 20, 2), noise(2, 10, 20, 3), noise(7), noise(10, 20, 5)]
)
def test_arrays_of_other_shapes_are_refused(array: np.ndarray) -> None:
    with pytest.raises(TypeError, match="shape"):
        prepare(array, OPTIONS)


@pytest.mark.parametrize("empty", [np.zeros((0, 5, 3), np.uint8), np.zeros((5, 0), np.uint8), b""])
def test_nothing_is_empty(empty: Any) -> None:
    with pytest.raises(ImageRejectedError) as caught:
        prepare(empty, OPTIONS, index=7)
    assert (caught.value.code, caught.value.index) == ("EMPTY", 7)


def test_text_files_are_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "notes.jpg"
    path.write_text("not a photo")
    with pytest.raises(ImageRejectedError, match=r"notes\.jpg: UNSUPPORTED"):
        prepare(path, OPTIONS)
    with path.open() as text, pytest.raises(TypeError, match="'rb'"):
        prepare(text, OPTIONS)  # type: ignore[arg-type]
    with pytest.raises(ImageRejectedError, match=r"UNREADABLE: .*pass its files"):
        prepare(tmp_path, OPTIONS)
    with pytest.raises(ImageRejectedError, match=r"UNREADABLE: .*pass the bytes"):
        prepare("https://example.org/photo.jpg", OPTIONS)


def test_large_files_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "video.jpg"
    with path.open("wb") as file:
        os.truncate(file.fileno(), 10**12)  # a terabyte of holes
    with pytest.raises(ImageRejectedError) as caught:
        prepare(path, OPTIONS)
    assert caught.value.code == "TOO_LARGE"


class Endless(io.RawIOBase):
    """A stream that gives little at a time and has no end; ``given`` counts."""

    given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        assert self.given < OPTIONS.limits.max_bytes + (1 << 21)
        self.given += min(len(buffer), 1 << 16)
        return min(len(buffer), 1 << 16)


def test_open_files_are_read_no_further_than_the_limit(photo: Callable[..., bytes]) -> None:
    with pytest.raises(ImageRejectedError) as caught:
        prepare(Endless(), OPTIONS)  # type: ignore[arg-type]
    assert caught.value.code == "TOO_LARGE"
    large = photo(0) + bytes(3 << 20)
    assert prepare(io.BytesIO(large), OPTIONS).data == large


def test_an_upload_that_must_be_awaited_is_told_apart(photo: Callable[..., bytes]) -> None:
    class Upload:
        async def read(self, size: int = -1) -> bytes:
            return photo(0)

    with pytest.raises(TypeError, match=r"Upload must be awaited: .*its \.file"):
        prepare(Upload(), OPTIONS)  # type: ignore[arg-type]


def test_limits_hold_before_upload(photo: Callable[..., bytes]) -> None:
    fake = FakeTransport()
    images = [photo(0), photo(1, size=(200, 100)), b"x" * 5000]
    with NimaClient(transport=fake, limits=Limits(max_bytes=4000, max_pixels=10_000)) as client:
        results = client.score(images, on_error="return")
    assert [getattr(r, "code", "") for r in results] == ["", "TOO_LARGE", "TOO_LARGE"]
    assert len(fake.requests) == 1


def test_large_photos_can_be_made_smaller() -> None:
    smooth = Image.fromarray(noise(6, 8, 3)).resize((1600, 1200), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    smooth.save(buffer, "JPEG", quality=95)
    small = prepare(buffer.getvalue(), PrepareOptions(Limits(), max_side=400)).data
    header = inspect_header(small)
    assert (header.width, header.height) == (400, 300)
    assert len(small) < len(buffer.getvalue()) / 4
    expected = np.asarray(smooth.resize((400, 300), Image.Resampling.BILINEAR), np.int16)
    assert np.abs(np.asarray(decode(small), np.int16) - expected).mean() < 2.0
    # What is small enough already is not touched.
    assert prepare(small, PrepareOptions(Limits(), max_side=400)).data == small


def test_making_smaller_keeps_orientation_and_proportion() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(noise(30, 2000, 3)).save(buffer, "PNG", exif=exif)
    small = prepare(buffer.getvalue(), PrepareOptions(Limits(), max_side=100)).data
    header = inspect_header(small)
    assert (header.width, header.height, header.orientation) == (2, 100, 1)
