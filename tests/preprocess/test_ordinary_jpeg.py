"""JPEG that goes to the decoder without Pillow having opened it: the same pixels and refusals."""

from __future__ import annotations

import io
import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nima_client.contract import RejectionCode
from nima_client.preprocess import (
    DEFAULT_LIMITS,
    ImageRejected,
    Limits,
    PreprocessSpec,
    _decode,
    decode,
    preprocess,
)

SPEC = PreprocessSpec()
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="{}"/></x:xmpmeta>'

pytestmark = pytest.mark.skipif(
    _decode.simplejpeg is None, reason="simplejpeg is not installed: Pillow opens every file"
)


def exif(orientation: int, **more: str) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    for name, value in more.items():
        block[{"make": 0x010F}[name]] = value
    return block.tobytes()


def jpeg(mode: str = "RGB", size: tuple[int, int] = (90, 60), **options: object) -> bytes:
    grains = np.random.default_rng(8).integers(0, 256, (6, 9, 3), np.uint8)
    image = Image.fromarray(grains).resize(size, Image.Resampling.BICUBIC).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(body) + 2).to_bytes(2, "big") + body


def outcome(data: bytes, limits: Limits) -> tuple[str, bytes] | bytes:
    try:
        return preprocess(data, SPEC, limits).tobytes()
    except ImageRejected as error:
        return error.code.value, error.detail.encode()


def by_pillow_first(data: bytes, limits: Limits = DEFAULT_LIMITS) -> tuple[str, bytes] | bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_decode, "_ordinary_jpeg", lambda *_: None)
        return outcome(data, limits)


@pytest.mark.parametrize(
    "options",
    [
        *({"exif": exif(turn)} for turn in range(1, 9)),
        *({"xmp": XMP.format(turn).encode()} for turn in (3, 6, 8)),
        {"exif": exif(6), "xmp": XMP.format(3).encode()},
        {"exif": exif(1, make="Maker"), "icc_profile": bytes(150_000)},
        {"mode": "L", "quality": 40},
        {"subsampling": 0, "restart_marker_blocks": 2, "comment": b"of a restart"},
        {"size": (1801, 1799), "exif": exif(7)},
        {"keep_rgb": True},
    ],
    ids=lambda options: "-".join(options),
)
def test_it_gives_what_the_opened_file_gives(options: dict[str, object]) -> None:
    data = jpeg(**options)
    assert _decode._ordinary_jpeg(data, DEFAULT_LIMITS) is not None
    assert outcome(data, DEFAULT_LIMITS) == by_pillow_first(data)
    with pytest.MonkeyPatch.context() as patch:
        upright = np.asarray(decode(data))
        patch.setattr(_decode, "_ordinary_jpeg", lambda *_: None)
        assert np.array_equal(upright, np.asarray(decode(data)))


def test_metadata_in_several_blocks_is_read_as_pillow_reads_it() -> None:
    data, whole = jpeg(), exif(6, make="x" * 300)
    first, rest = whole[:200], b"Exif\0\0" + whole[200:]
    xmp = [b"http://ns.adobe.com/xap/1.0/\0" + XMP.format(turn).encode() for turn in (3, 8)]
    seen = set()
    for blocks in ([first, rest], xmp, [xmp[1], xmp[0]], [b"something else of 16 bytes"]):
        changed = data[:2] + b"".join(segment(0xE1, block) for block in blocks) + data[2:]
        assert _decode._ordinary_jpeg(changed, DEFAULT_LIMITS) is not None
        seen.add(outcome(changed, DEFAULT_LIMITS))
        assert outcome(changed, DEFAULT_LIMITS) == by_pillow_first(changed)
    assert len(seen) == 4


def test_every_shared_photo_comes_to_the_same(shared_photos: Path) -> None:
    files = [*(shared_photos / "edge").iterdir(), *(shared_photos / "bench").iterdir()]
    ordinary = 0
    for path in files:
        data = path.read_bytes()
        ordinary += _decode._ordinary_jpeg(data, DEFAULT_LIMITS) is not None
        assert outcome(data, DEFAULT_LIMITS) == by_pillow_first(data), path.name
    assert ordinary > 30


@given(
    turn=st.integers(1, 8),
    changes=st.lists(st.tuples(st.integers(0, 900), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.one_of(st.none(), st.integers(1, 2000)),
)
@settings(max_examples=400, deadline=None)
def test_damaged_files_come_to_the_same(
    turn: int, changes: list[tuple[int, int]], cut: int | None
) -> None:
    data = bytearray(jpeg(exif=exif(turn)))
    for position, value in changes:
        data[position % len(data)] = value
    damaged = bytes(data[:cut])
    limits = Limits(max_pixels=20_000_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the log is not for uploaders
        assert outcome(damaged, limits) == by_pillow_first(damaged, limits)


def test_the_limits_hold_with_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg()
    for limits in (Limits(max_pixels=90 * 60 - 1), Limits(max_bytes=len(data) - 1)):
        found = outcome(data, limits)
        assert found[0] == RejectionCode.TOO_LARGE.value
        assert found == by_pillow_first(data, limits)
    assert isinstance(outcome(data, Limits(max_pixels=90 * 60, max_bytes=len(data))), bytes)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90 * 60 // 2 - 1)
    assert outcome(data, DEFAULT_LIMITS)[0] == RejectionCode.TOO_LARGE.value


def test_a_damaged_file_is_decoded_by_each_decoder_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count()
    real = _decode.simplejpeg.decode_jpeg

    def counted(*given: object, **options: object) -> object:
        next(calls)
        return real(*given, **options)

    monkeypatch.setattr(_decode.simplejpeg, "decode_jpeg", counted)
    whole = jpeg(size=(300, 200))
    preprocess(whole, SPEC)
    with pytest.raises(ImageRejected, match="corrupt JPEG"):
        preprocess(whole[: len(whole) // 2], SPEC)
    assert next(calls) == 2
