"""What the segments of an ordinary JPEG say, in a tenth of the time of the full check.

For most photos a walk over a handful of segments tells all that is to be known before they are
decoded; whatever is not quite ordinary is left to the full check
(:func:`nima_client.preprocess.inspect_header`). The client asks before every upload how large an
image is; a server, before it decodes, also for the orientation.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_SEGMENT = struct.Struct(">BBH")
_FRAME = struct.Struct(">BHHB")
# Baseline and progressive: what cameras and editors write.
_FRAMES = frozenset((0xC0, 0xC1, 0xC2))
_SKIPPED = frozenset((*range(0xE0, 0xF0), 0xDB, 0xC4, 0xDD, 0xFE))
_MOST_SEGMENTS = 200
_MOST_METADATA = 1 << 20
_BASELINE = frozenset((0xC0, 0xC1))
_SCAN = 0xDA
_APP1 = 0xE1
_EXIF = b"Exif\0\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
# A file with an application's segment that ends within its own head is refused by Pillow: Adobe's
# has 14 bytes with its length, JFIF's 16, and so has that of a piece of a colour profile.
_SHORTEST = {**dict.fromkeys(range(0xE0, 0xF0), 14), 0xE2: 16}


class BaselineJpeg(NamedTuple):
    """What :func:`baseline_jpeg` found.

    Attributes:
        width: stored width in pixels, before orientation.
        height: stored height in pixels, before orientation.
        blocks: where in the file the blocks are in which an orientation may be
            (:func:`metadata_of` reads them).
    """

    width: int
    height: int
    blocks: tuple[slice, ...]


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Stored width and height in pixels of a JPEG file.

    Args:
        data: the encoded file.

    Returns:
        The size, or None for what is no JPEG or not an ordinary one: this is no judgement.
    """
    if data[:2] != b"\xff\xd8":
        return None
    position = 2
    try:
        for _ in range(_MOST_SEGMENTS):
            fill, marker, length = _SEGMENT.unpack_from(data, position)
            if fill != 0xFF:
                return None
            if marker in _FRAMES:
                bits, height, width, components = _FRAME.unpack_from(data, position + 4)
                ordinary = bits == 8 and components in (1, 3, 4) and length == 8 + 3 * components
                return (width, height) if ordinary and width and height else None
            if marker not in _SKIPPED or length < 2:
                return None
            position += 2 + length
    except struct.error:
        pass
    return None


def baseline_jpeg(data: bytes) -> BaselineJpeg | None:
    """Stored size, and the place of the metadata, of a JPEG file that is beyond doubt.

    Grey or three components of 8 bits, all of them in one sequential scan, behind less than a
    megabyte of metadata: of such a file the full check has nothing to say but this.

    Args:
        data: the encoded file.

    Returns:
        What it says, or None for all else: this is no judgement.
    """
    if data[:2] != b"\xff\xd8":
        return None
    position, size, components = 2, None, 0
    blocks: list[slice] = []
    try:
        for _ in range(_MOST_SEGMENTS):
            fill, marker, length = _SEGMENT.unpack_from(data, position)
            if fill != 0xFF or length < 2 or position > _MOST_METADATA:
                return None
            if marker == _SCAN:
                if size is None or data[position + 4] != components:
                    return None
                return BaselineJpeg(*size, tuple(blocks))
            if marker in _BASELINE and size is None:
                bits, height, width, components = _FRAME.unpack_from(data, position + 4)
                if bits != 8 or components not in (1, 3) or length != 8 + 3 * components:
                    return None
                if not (width and height):
                    return None
                size = width, height
            elif marker not in _SKIPPED or length < _SHORTEST.get(marker, 2):
                return None
            elif marker == _APP1:
                blocks.append(slice(position + 4, position + 2 + length))
            position += 2 + length
    except (struct.error, IndexError):
        pass
    return None


def metadata_of(data: bytes, found: BaselineJpeg) -> dict[str, bytes]:
    """The metadata in which an orientation may be, as Pillow reads and names it.

    Exif in several blocks is joined, of XMP the last block counts.

    Args:
        data: the encoded file.
        found: what :func:`baseline_jpeg` said of it.

    Returns:
        ``exif`` and ``xmp``, those that are there.
    """
    metadata: dict[str, bytes] = {}
    for place in found.blocks:
        block = data[place]
        if block.startswith(_EXIF):
            joined = metadata.get("exif")
            metadata["exif"] = block if joined is None else joined + block[len(_EXIF) :]
        elif block.startswith(_XMP):
            metadata["xmp"] = block[len(_XMP) :]
    return metadata
