"""HEIC, in which iPhones and newer cameras write photos: read here, since no server decodes it.

The extra ``heic`` brings the decoder (pi-heif, a binding of libheif). Orientation is HEIF's own,
applied by libheif; that of EXIF is for information only (ISO/IEC 23008-12).
"""

from __future__ import annotations

import functools
import importlib.util

import numpy as np
from PIL import Image

from nima_client.contract import RejectionCode
from nima_client.preprocess import (
    DEFAULT_LIMITS,
    ImageRejected,
    Limits,
    PreprocessSpec,
    decode,
)
from nima_client.preprocess._decode import on_white
from nima_client.preprocess._header import check_bytes, check_pixels

SUFFIXES = frozenset((".heic", ".heif", ".hif"))

_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
HOW_TO_GET = "HEIC needs pip install 'nima-triton[heic]', or save it as JPEG"


@functools.cache
def can_read() -> bool:
    """Whether the extra is installed."""
    return importlib.util.find_spec("pi_heif") is not None


def is_heic(data: bytes | bytearray | memoryview) -> bool:
    """Whether a file's first bytes are those of HEIC (and not of AVIF, a sibling)."""
    head = bytes(data[:64])
    return head[4:8] == b"ftyp" and head[8:12] in _BRANDS and b"avif" not in head


def decode_photo(
    data: bytes, spec: PreprocessSpec | None = None, limits: Limits = DEFAULT_LIMITS
) -> Image.Image:
    """As :func:`nima_client.preprocess.decode`, of HEIC as well (at full size, whatever ``spec``).

    Raises:
        ImageRejected: with the reason; UNSUPPORTED for HEIC without the extra ``heic``.
    """
    return _decode_heic(data, limits) if is_heic(data) else decode(data, spec, limits)


def _decode_heic(data: bytes, limits: Limits) -> Image.Image:
    if not can_read():
        raise ImageRejected(RejectionCode.UNSUPPORTED, HOW_TO_GET)
    check_bytes(len(data), limits)
    import pi_heif

    try:
        file = pi_heif.open_heif(data)  # reads the boxes; pixels are decoded when asked for
        width, height = file.size
        check_pixels(width, height, limits)
        pixels = np.asarray(file)
    except (ImageRejected, MemoryError):
        raise
    except Exception as error:  # of libheif, and of what a damaged file makes of Python's readers
        text = " ".join(str(error).split())[:80]
        raise ImageRejected(RejectionCode.UNDECODABLE, f"corrupt HEIC: {text}") from None
    return on_white(Image.fromarray(pixels))
