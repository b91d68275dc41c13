"""Kinds of files that a GPU decodes, or must leave to the CPU, and its pixels of each."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from nima_client.preprocess import ImageRejected, PreprocessSpec, preprocess

_ORIENTATION = 0x0112
_XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
_LARGE = (6000, 4000)
_STRIPS = ((3, 1500), (1500, 3), (1, 1))


def kinds_of_files(photo: Image.Image) -> dict[str, bytes]:
    """One photo as JPEG of every kind that cameras, editors and web sites write, and as others.

    Args:
        photo: RGB.

    Returns:
        Files by what they are; ``cut short`` alone is to be refused.
    """
    return dict(_files(photo))


def _files(photo: Image.Image) -> Iterator[tuple[str, bytes]]:
    for name, subsampling in (("4:4:4", 0), ("4:2:2", 1), ("4:2:0", 2)):
        yield f"JPEG {name}", _encode(photo, subsampling=subsampling)
    yield "JPEG progressive", _encode(photo, progressive=True)
    yield "JPEG with optimised tables", _encode(photo, optimize=True)
    yield "JPEG with restart markers", _encode(photo, restart_marker_rows=1)
    yield "JPEG of quality 5", _encode(photo, quality=5)
    yield "JPEG of quality 100", _encode(photo, quality=100)
    yield "JPEG, odd size", _encode(photo.resize((501, 377)))
    yield "JPEG, large", _encode(photo.resize(_LARGE))
    for size in _STRIPS:
        yield f"JPEG {size[0]}x{size[1]}", _encode(photo.resize(size))
    for turn in range(2, 9):
        exif = Image.Exif()
        exif[_ORIENTATION] = turn
        yield f"JPEG, orientation {turn}", _encode(photo, exif=exif.tobytes())
    yield "JPEG, orientation 6 in XMP", _encode(photo, xmp=_XMP)
    yield "JPEG of RGB", _encode(photo, keep_rgb=True)
    yield "JPEG, grey", _encode(photo.convert("L"))
    yield "JPEG, CMYK", _encode(photo.convert("CMYK"))
    whole = _encode(photo)
    yield "JPEG and bytes after it", whole + bytes(100)
    yield "cut short", whole[: len(whole) // 2]
    clear = photo.convert("RGBA")
    clear.putalpha(128)
    yield "PNG, half transparent", _encode(clear, "PNG")
    yield "WebP", _encode(photo, "WEBP")


def _encode(image: Image.Image, name: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def compare_formats(
    pixels: Callable[[list[list[bytes]]], list[Any]], photo: Image.Image, spec: PreprocessSpec
) -> dict[str, Any]:
    """What the preprocessing of a GPU makes of every kind of file, each a request of its own.

    Args:
        pixels: a ``GpuPixels`` that hands on arrays of the host.
        photo: RGB.
        spec: of the reference; must decode at full size.

    Returns:
        By kind: the largest and the mean difference from the reference in 1/255, or the code of the
        refusal (``reference`` has the other one's where they do not agree).
    """
    files = kinds_of_files(photo)
    found = pixels([[data] for data in files.values()])
    return {
        name: _compare(data, result, spec)
        for (name, data), result in zip(files.items(), found, strict=True)
    }


def _compare(data: bytes, found: Any, spec: PreprocessSpec) -> dict[str, Any]:
    refused = found[0][1].code.value if isinstance(found, list) else None
    try:
        wanted = preprocess(data, spec).astype(int)
    except ImageRejected as error:
        return {"refused": refused, "reference": error.code.value}
    if refused:
        return {"refused": refused, "reference": None}
    difference = np.abs(wanted - np.asarray(found)[0])
    return {"max": int(difference.max()), "mean": round(float(difference.mean()), 3)}
