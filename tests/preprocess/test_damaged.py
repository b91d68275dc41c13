"""Damaged pixels are refused, never scored; and a header is read without decoding any."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image, ImageFile, features

from nima_client.contract import RejectionCode
from nima_client.preprocess import ImageRejected, PreprocessSpec, decode, inspect_header, preprocess

SPEC = PreprocessSpec()
AVIF = pytest.param(
    "AVIF",
    marks=pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF"),
)
Damage = Callable[[bytes], bytes]


def picture() -> Image.Image:
    """Smooth noise: no part of the file is idle."""
    grains = np.random.default_rng(5).integers(0, 256, (24, 32, 3), np.uint8)
    return Image.fromarray(grains).resize((320, 240), Image.Resampling.BICUBIC)


def save(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture().save(buffer, kind, **options)
    return buffer.getvalue()


def chunks(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Offset of the contents, their length, and the kind, of each chunk of a PNG."""
    position = 8
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        yield position + 8, length, kind
        position += 12 + length


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def orientation_block(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes().removeprefix(b"Exif\0\0")


def zeroed(data: bytes) -> bytes:
    """The second half of the compressed pixels overwritten with zeros."""
    damaged = bytearray(data)
    for start, length, kind in chunks(data):
        if kind == b"IDAT":
            damaged[start + length // 2 : start + length] = bytes(length - length // 2)
    return bytes(damaged)


def four_bytes(data: bytes) -> bytes:
    """Four bytes in the middle of the compressed pixels turned over."""
    damaged = bytearray(data)
    start, length, _ = next(c for c in chunks(data) if c[2] == b"IDAT")
    for offset in range(start + length // 2, start + length // 2 + 4):
        damaged[offset] ^= 0xFF
    return bytes(damaged)


def four_bytes_with_checksum(data: bytes) -> bytes:
    """The same in a chunk that was written anew, so that only the decoder can tell."""
    damaged = bytearray(four_bytes(data))
    for start, length, kind in chunks(data):
        if kind == b"IDAT":
            checksum = zlib.crc32(damaged[start - 4 : start + length])
            struct.pack_into(">I", damaged, start + length, checksum)
    return bytes(damaged)


def bad_checksum(data: bytes) -> bytes:
    damaged = bytearray(data)
    start, length, _ = next(c for c in chunks(data) if c[2] == b"IDAT")
    damaged[start + length] ^= 1
    return bytes(damaged)


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def nine_tenths(data: bytes) -> bytes:
    return data[: len(data) * 9 // 10]


def refused(data: bytes) -> None:
    with pytest.raises(ImageRejected) as caught:
        preprocess(data, SPEC)
    assert caught.value.code is RejectionCode.UNDECODABLE


@pytest.mark.parametrize(
    "damage",
    [zeroed, four_bytes, four_bytes_with_checksum, bad_checksum, half, nine_tenths],
)
@pytest.mark.parametrize("exif", [None, orientation_block(1)])
def test_a_damaged_png_is_refused(damage: Damage, exif: bytes | None) -> None:
    whole = save("PNG", exif=exif)
    assert np.array_equal(np.asarray(decode(whole)), np.asarray(picture()))
    refused(damage(whole))


def test_no_bit_of_a_png_s_pixels_may_turn_over() -> None:
    whole = save("PNG")
    rng = np.random.default_rng(6)
    for start, length, kind in chunks(whole):
        for offset in rng.integers(0, length, 100) if kind == b"IDAT" else ():
            damaged = bytearray(whole)
            damaged[start + offset] ^= 1 << int(rng.integers(0, 8))
            refused(bytes(damaged))


@pytest.mark.parametrize("damage", [half, nine_tenths])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        pytest.param("AVIF", {}, marks=AVIF.marks),
    ],
)
def test_a_file_cut_short_is_refused(kind: str, options: dict[str, object], damage: Damage) -> None:
    whole = save(kind, **options)
    assert preprocess(whole, SPEC).any()
    refused(damage(whole))


@pytest.mark.parametrize("kind", ["GIF", "TIFF"])
def test_compressed_pixels_of_zeros_are_refused(kind: str) -> None:
    options = {"compression": "tiff_adobe_deflate"} if kind == "TIFF" else {}
    damaged = bytearray(save(kind, **options))
    start, end = len(damaged) // 3, len(damaged) * 2 // 3
    damaged[start:end] = bytes(end - start)
    refused(bytes(damaged))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", AVIF])
def test_reading_a_header_decodes_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = save(kind)
    opened: list[Image.Image] = []
    real = Image.open

    def remembered(*args: object, **options: object) -> Image.Image:
        opened.append(real(*args, **options))
        plugin = type(opened[-1])
        for owner in (plugin, ImageFile.ImageFile):
            monkeypatch.setattr(owner, "load", lambda _: pytest.fail("decoded"))
        opened[-1].tile_before = list(opened[-1].tile)
        return opened[-1]

    monkeypatch.setattr(Image, "open", remembered)
    header = inspect_header(data)
    assert (header.format, header.width, header.height) == (kind, 320, 240)
    (image,) = opened
    assert image.tile == image.tile_before


def test_a_png_may_have_its_orientation_before_or_behind_its_pixels() -> None:
    plain = save("PNG")
    first = next(start - 8 for start, _, kind in chunks(plain) if kind == b"IDAT")
    last = next(start - 8 for start, _, kind in chunks(plain) if kind == b"IEND")
    upside_down = np.asarray(picture())[::-1, ::-1]

    def with_block(at: int, value: int, data: bytes = plain) -> bytes:
        return data[:at] + chunk(b"eXIf", orientation_block(value)) + data[at:]

    before, behind = with_block(first, 3), with_block(last, 3)
    assert inspect_header(before).orientation == 3
    assert np.array_equal(np.asarray(decode(before)), upside_down)
    assert np.array_equal(np.asarray(decode(behind)), upside_down)
    # Of two, the first one counts.
    both = with_block(first, 3, with_block(last, 6))
    assert np.array_equal(np.asarray(decode(both)), upside_down)
    # A broken one is no reason to refuse the photo.
    broken = plain[:last] + chunk(b"eXIf", b"II*\0\xff\xff\xff\xff") + plain[last:]
    assert np.array_equal(np.asarray(decode(broken)), np.asarray(picture()))
