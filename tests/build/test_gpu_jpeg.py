"""JPEG files that nvImageCodec reads otherwise than the reference, or crashes over."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from nima_build.repository import load_module
from nima_client.preprocess import decode

pytest.importorskip("nvidia.nvimgcodec", reason="needs the extra gpu-preprocessing")
VERSION = Path(__file__).parents[2] / "model_repository" / "nima_preprocess" / "1"
XMP = (
    b"http://ns.adobe.com/xap/1.0/\0"
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="%d"/></x:xmpmeta>'
)
SHORT, LONG, BYTE = 3, 4, 1
MAKE, ORIENTATION, X_RESOLUTION, UNKNOWN = 0x010F, 0x0112, 0x011A, 0x9999


@pytest.fixture(scope="module")
def gpu_jpeg() -> ModuleType:
    return load_module(VERSION / "gpu_jpeg.py")


@pytest.fixture(scope="module")
def nvimagecodec() -> Callable[[bytes], np.ndarray]:
    decoder = load_module(VERSION / "gpu_pixels.py").JpegDecoder(None)
    return lambda data: np.asarray(decoder.decode([data])[0].cpu()).astype(int)


def encoded(**options: object) -> bytes:
    """A photo of 24x16 pixels that shows which way it was turned."""
    ramp = np.add.outer(np.arange(16) * 9, np.arange(24) * 4).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(ramp).convert("RGB").save(file, "JPEG", quality=95, **options)
    return file.getvalue()


def segment(content: bytes, marker: int = 0xE1) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def entry(tag: int, kind: int, count: int, value: int, order: str = "<") -> bytes:
    small = kind == SHORT and count <= 2
    packed = struct.pack(
        f"{order}HH" if small else f"{order}L", *([value, 0] if small else [value])
    )
    return struct.pack(f"{order}HHL", tag, kind, count) + packed


def exif(*entries: bytes, order: str = "<") -> bytes:
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}LH", 8, len(entries))
    return segment(b"Exif\0\0" + head + b"".join(entries) + bytes(4))


def turned(value: int, kind: int = SHORT, order: str = "<") -> bytes:
    return exif(entry(ORIENTATION, kind, 1, value, order), order=order)


def with_segments(*segments: bytes, **options: object) -> bytes:
    photo = encoded(**options)
    return photo[:2] + b"".join(segments) + photo[2:]


def is_same(nvimagecodec: Callable[[bytes], np.ndarray], data: bytes) -> bool:
    got, wanted = nvimagecodec(data), np.asarray(decode(data)).astype(int)
    return got.shape == wanted.shape and bool(np.abs(got - wanted).max() <= 2)


@pytest.mark.parametrize(
    "segments",
    [
        [segment(XMP % 6)],
        [exif(entry(X_RESOLUTION, LONG, 1, 72)), segment(XMP % 6)],
        [turned(6, LONG, ">")],
        [turned(6, BYTE)],
        # Pillow stops at a value that lies outside the block, the other goes on, or the reverse.
        [exif(entry(UNKNOWN, LONG, 9, 5000), entry(ORIENTATION, SHORT, 1, 6))],
        [exif(entry(ORIENTATION, SHORT, 1, 6), entry(X_RESOLUTION, SHORT, 1, 5000))],
    ],
    ids=["XMP", "XMP beside Exif", "LONG", "BYTE", "outside before", "outside behind"],
)
def test_an_orientation_that_nvimagecodec_reads_otherwise_is_the_references(
    gpu_jpeg: ModuleType, nvimagecodec: Callable[[bytes], np.ndarray], segments: list[bytes]
) -> None:
    for progressive in (False, True):
        data = with_segments(*segments, progressive=progressive)
        assert not is_same(nvimagecodec, data), "no longer so: the GPU may have these"
        assert not gpu_jpeg.is_read_alike(data)


def test_what_crashes_nvimagecodec_does_not_reach_it(gpu_jpeg: ModuleType) -> None:
    """Two blocks of Exif, orientations 6 and 3: "free(): corrupted unsorted chunks" (0.9)."""
    for first, second in ((6, 3), (8, 3), (1, 1)):
        assert not gpu_jpeg.is_read_alike(with_segments(turned(first), turned(second)))


def test_colours_that_are_not_ycbcr_are_the_references(gpu_jpeg: ModuleType) -> None:
    adobe = [segment(b"Adobe\0d\0\0\0\0" + bytes([transform]), 0xEE) for transform in (0, 1, 2)]
    named = bytearray(encoded())
    frame = named.index(b"\xff\xc0")
    named[frame + 10 : frame + 19 : 3] = b"RGB"
    assert not gpu_jpeg.is_read_alike(encoded(keep_rgb=True))
    assert not gpu_jpeg.is_read_alike(bytes(named))
    assert [gpu_jpeg.is_read_alike(with_segments(one)) for one in adobe] == [False, True, False]


def test_ordinary_photos_are_the_gpus(
    gpu_jpeg: ModuleType, nvimagecodec: Callable[[bytes], np.ndarray]
) -> None:
    photos = [encoded(), encoded(progressive=True), with_segments(segment(XMP % 1))]
    photos += [with_segments(turned(3), segment(XMP % 6))]
    photos += [with_segments(turned(value)) for value in range(9)]
    photos += [with_segments(turned(value, order=">"), progressive=True) for value in range(1, 9)]
    make = b"A camera\0\0"
    block = exif(entry(MAKE, 2, len(make), 38), entry(ORIENTATION, SHORT, 1, 8))
    photos += [with_segments(segment(block[4:] + make))]
    for data in photos:
        assert gpu_jpeg.is_read_alike(data)
        assert is_same(nvimagecodec, data)


def test_no_damaged_exif_turns_a_photo_otherwise(
    gpu_jpeg: ModuleType, nvimagecodec: Callable[[bytes], np.ndarray]
) -> None:
    tags = [0x010E, MAKE, X_RESOLUTION, 0x0128, 0x0131, 0x013E, 0x0211, 0x0214, 0x8769, UNKNOWN]
    chance = random.Random(1)
    upright, turned_photos, others = decode(encoded()), 0, 0
    for _ in range(600):
        order = chance.choice("<>")
        entries = [
            entry(
                tag, chance.choice([1, 2, SHORT, LONG, 5, 7]), chance.choice([1, 2, 9]), 60, order
            )
            for tag in chance.sample(tags, chance.randint(0, 5))
        ]
        place, value = chance.randint(0, len(entries)), chance.randint(2, 8)
        entries.insert(place, entry(ORIENTATION, SHORT, 1, value, order))
        block = bytearray(exif(*entries, order=order)[4:] + bytes(chance.choice([0, 80])))
        for _ in range(chance.choice([0, 1, 2])):
            block[chance.randrange(6, len(block))] = chance.choice([0, 1, 255])
        data = with_segments(segment(bytes(block)))
        if gpu_jpeg.is_read_alike(data):
            assert is_same(nvimagecodec, data), bytes(block)
            turned_photos += not np.array_equal(decode(data), upright)
        else:
            others += 1
    assert turned_photos > 100
    assert others > 100
