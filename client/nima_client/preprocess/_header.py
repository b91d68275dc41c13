"""Format and size of an encoded image, from its first bytes: nothing is decoded."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from nima_client.contract import RejectionCode
from nima_client.preprocess._errors import ImageRejected
from nima_client.preprocess._quiet import QUIET
from nima_client.preprocess._spec import DEFAULT_LIMITS, Limits
from nima_client.preprocess._structure import check_structure, claims_too_much

SUPPORTED_FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Pillow's names of the formats that are scored (AVIF where Pillow was built with it)."""

_ORIENTATION_TAG = 0x0112
_SUBFILE_TYPE_TAG, _SUB_IFDS_TAG = 254, 330
_REDUCED = 1


@dataclass(frozen=True)
class ImageHeader:
    """What the header says.

    Attributes:
        format: one of :data:`SUPPORTED_FORMATS`.
        width: stored width in pixels, before orientation.
        height: stored height in pixels, before orientation.
        mode: Pillow's mode of the stored pixels.
        orientation: EXIF orientation 1..8 still to be applied; 1 when absent or absurd. A PNG may
            also have it behind its pixels, where only :func:`~nima_client.preprocess.decode` looks.
    """

    format: str
    width: int
    height: int
    mode: str
    orientation: int


def sniff_format(data: bytes) -> str | None:
    """Format by magic number, or None when it is none of :data:`SUPPORTED_FORMATS`."""
    head = data[:16]
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith(b"BM"):
        return "BMP"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if head[4:12] in (b"ftypavif", b"ftypavis") or (head[4:8] == b"ftyp" and b"avif" in data[8:64]):
        return "AVIF"
    return None


def check_bytes(count: int, limits: Limits) -> None:
    """Refuse a file of too many bytes (TOO_LARGE)."""
    if count > limits.max_bytes:
        raise ImageRejected(
            RejectionCode.TOO_LARGE, f"{count} bytes, the limit is {limits.max_bytes}"
        )


def check_pixels(width: int, height: int, limits: Limits) -> None:
    """Refuse an image of too many pixels (TOO_LARGE)."""
    if width * height > limits.max_pixels:
        raise ImageRejected(
            RejectionCode.TOO_LARGE,
            f"{width}x{height} pixels, the limit is {limits.max_pixels} in all",
        )


def open_lazily(data: bytes, limits: Limits) -> tuple[Image.Image, ImageHeader]:
    """Open an image without decoding its pixels, after the checks of size and format.

    Raises:
        ImageRejected: as :func:`inspect_header` says.
    """
    if not data:
        raise ImageRejected(RejectionCode.EMPTY, "no bytes")
    check_bytes(len(data), limits)
    name = sniff_format(data)
    if name is None:
        raise ImageRejected(
            RejectionCode.UNSUPPORTED, f"not an image of {', '.join(SUPPORTED_FORMATS)}"
        )
    check_structure(data, name, limits)
    try:
        # Our own limit decides, not Pillow's warning (its hard error stays).
        with QUIET:
            image = Image.open(io.BytesIO(data), formats=[name])
    except Image.DecompressionBombError:
        raise ImageRejected(
            RejectionCode.TOO_LARGE, f"more pixels than the limit of {limits.max_pixels}"
        ) from None
    except KeyError:
        raise ImageRejected(
            RejectionCode.UNSUPPORTED, f"this installation of Pillow cannot decode {name}"
        ) from None
    except Exception:
        # Pillow's plugins raise nearly anything on a corrupt header.
        raise ImageRejected(RejectionCode.UNDECODABLE, f"broken {name} header") from None
    if name == "TIFF" and _is_thumbnail(image):
        raise ImageRejected(
            RejectionCode.UNSUPPORTED, "only a thumbnail can be read (a raw file?): save it as JPEG"
        )
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageRejected(RejectionCode.UNDECODABLE, f"{name} of {width}x{height} pixels")
    check_pixels(width, height, limits)
    # Pillow turns a TIFF upright by itself while loading it.
    orientation = 1 if name == "TIFF" else orientation_of(image.info)
    return image, ImageHeader(name, width, height, image.mode, orientation)


def _is_thumbnail(image: Any) -> bool:
    """Whether the first picture of a TIFF is a smaller copy of one that lies in a directory below.

    So raw files begin (NEF, DNG): their 160x120 pixels would be scored in the place of the photo.
    """
    try:
        kind = image.tag_v2.get(_SUBFILE_TYPE_TAG, 0)
        return bool(kind & _REDUCED) and _SUB_IFDS_TAG in image.tag_v2
    except Exception:  # a broken tag: the decoder says so better
        return False


def inspect_header(data: bytes, limits: Limits = DEFAULT_LIMITS) -> ImageHeader:
    """Read format, size and orientation, and hold them against the limits.

    Args:
        data: the encoded file.
        limits: largest size in bytes and in pixels.

    Raises:
        ImageRejected: EMPTY without bytes, TOO_LARGE beyond a limit, UNSUPPORTED for what is not an
            image of a known format, UNDECODABLE for a known format with a broken header.
    """
    image, header = open_lazily(data, limits)
    image.close()
    return header


def orientation_of(info: Mapping[Any, Any]) -> int:
    """EXIF orientation 1..8 out of what Pillow read so far (``Image.info``); 1 when there is none.

    Not by ``getexif()`` of the image itself: a PNG decodes its pixels there, and has forgotten by
    the next ``load()`` that they were damaged.
    """
    holder = Image.Image()
    holder.info = dict(info)
    return orientation_in_exif(holder)


def _exif_of(info: Mapping[Any, Any]) -> bytes:
    """The Exif block that Pillow would parse: its own, or as ImageMagick puts it into a PNG."""
    exif = info.get("exif")
    if exif is None and (profile := info.get("Raw profile type exif")):
        exif = bytes.fromhex("".join(profile.split("\n")[3:]))
    return exif or b""


def orientation_in_exif(image: Image.Image) -> int:
    """EXIF orientation 1..8 of an image whose pixels are loaded; 1 when there is none."""
    try:
        if claims_too_much(_exif_of(image.info)):
            return 1
        with QUIET:  # of what is broken in it
            value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:
        # A broken EXIF block is no reason to refuse a readable photo.
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
