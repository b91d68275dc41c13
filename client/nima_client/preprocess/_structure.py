"""Files that are small and well-formed, yet take a decoder minutes or gigabytes.

Width, height and byte count do not bound the work of a decoder: a progressive JPEG may pass over
its image ten thousand times, a PNG may consist of millions of empty chunks, Pillow expands
run-length coded BMP byte by byte in Python. Each walk below looks at the structure only, touches
no pixel, and costs less than a millisecond for an ordinary photo. Every limit lies far beyond what
cameras and editors write. ``tests/reliability/test_bombs.py`` has a file for each.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator

from nima_client.contract import RejectionCode
from nima_client.preprocess._errors import ImageRejected
from nima_client.preprocess._spec import Limits

_MAX_JPEG_SEGMENTS = 20_000
_MAX_JPEG_FILL_BYTES = 1 << 16
_MAX_JPEG_METADATA = 8 << 20  # Exif and Photoshop blocks: Pillow joins and parses them
# An encoder's usual progression has 10 to 13 scans. At the pixel limit 16 are allowed, and
# proportionately more for smaller images.
_JPEG_SCANS_AT_PIXEL_LIMIT = 16
_MAX_JPEG_SCANS = 1000
_FREE_BLOCKS = 10_000  # PNG chunks or GIF blocks that any file may have …
_BYTES_A_BLOCK = 256  # … and, beyond those, one for so many bytes of the file
_MAX_GIF_COMMENTS = 1 << 20  # bytes: Pillow before 13 copies them all for each of their blocks
_MAX_PNG_PROFILES = 4  # each may inflate to a megabyte; the standard allows one
_MAX_RLE_PIXELS = 2_000_000
_MAX_TIFF_ENTRIES = 65_535
_MAX_TIFF_STRIPS = 1 << 18
_SMALL_TIFF_TILE = 1 << 22  # pixels; larger tiles must be in proportion to the image

# Pillow takes the reserved markers (0xF0 on) for these too, and walks on into their contents.
_JPEG_WITHOUT_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_JPEG_NOT_FILL = re.compile(rb"[^\xff]", re.DOTALL)
_TIFF_WIDTH, _TIFF_LENGTH = 256, 257
_TIFF_TILE_WIDTH, _TIFF_TILE_LENGTH = 322, 323
_TIFF_OFFSETS = (273, 324)
_TIFF_INTEGERS = {1: "B", 3: "H", 4: "I"}
# Bytes of a value of each type.
_TIFF_SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
}
_MOST_CLAIMED = 4  # times what is there; the values of a sound file do not overlap
_EXIF_MARK = b"Exif\0\0"


def check_structure(data: bytes, name: str, limits: Limits) -> None:
    """Refuse a file whose decoding would cost far more than its size and its pixels say.

    What is merely broken passes: the decoder says so better.

    Args:
        data: the encoded file.
        name: its format, one of :data:`nima_client.preprocess.SUPPORTED_FORMATS`.
        limits: the pixel limit scales what a JPEG may cost.

    Raises:
        ImageRejected: TOO_LARGE, with what there is too much of.
    """
    check = _CHECKS.get(name)
    if check is not None:
        try:
            check(data, limits)
        except (struct.error, IndexError, OverflowError):
            return  # cut short, or an offset (BigTIFF has 64 bits for them) beyond any file


def _too_much(what: str) -> ImageRejected:
    return ImageRejected(RejectionCode.TOO_LARGE, f"{what}: decoding would cost too much")


def _check_jpeg(data: bytes, limits: Limits) -> None:
    position, segments, fill, metadata, scans, pixels = 2, 0, 0, 0, 0, 0
    sequential, components = False, 0
    while True:
        start = data.find(b"\xff", position)
        if start < 0:
            return
        found = _JPEG_NOT_FILL.search(data, start)
        if found is None:
            marker_at = len(data)
        else:
            marker_at = found.start()
        # Pillow also walks over what lies between segments byte by byte.
        fill += marker_at - 1 - position
        if fill > _MAX_JPEG_FILL_BYTES:
            raise _too_much(f"JPEG with {fill} filling bytes")
        marker = data[marker_at]
        position = marker_at + 1
        segments += 1
        if segments > _MAX_JPEG_SEGMENTS:
            raise _too_much(f"JPEG with more than {_MAX_JPEG_SEGMENTS} segments")
        if marker == 0xD9 and scans:
            return
        if marker in _JPEG_WITHOUT_LENGTH:
            continue
        (length,) = struct.unpack_from(">H", data, position)
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, position + 3)
            pixels = max(pixels, height * width)
            sequential, components = marker in (0xC0, 0xC1), data[position + 7]
        elif marker == 0xED or (marker == 0xE1 and data[position + 2 : position + 6] == b"Exif"):
            metadata += length
            if metadata > _MAX_JPEG_METADATA:
                raise _too_much(f"JPEG with {metadata} bytes of metadata")
        if marker == 0xDA:
            # The ordinary photo: one scan with every component, which no decoder looks beyond.
            if sequential and data[position + 2] == components:
                return
            # Compressed data cannot hold this pair of bytes, so few of them mean few scans; only
            # otherwise (a film or a second picture behind the photo) are they counted one by one.
            if not scans and data.count(b"\xff\xda", position) < _JPEG_SCANS_AT_PIXEL_LIMIT:
                return
            scans += 1
            allowed = min(
                _MAX_JPEG_SCANS,
                _JPEG_SCANS_AT_PIXEL_LIMIT * limits.max_pixels // max(pixels, 1),
            )
            if scans > max(allowed, _JPEG_SCANS_AT_PIXEL_LIMIT):
                raise _too_much(f"JPEG of {pixels} pixels with more than {scans - 1} scans")
            end = _JPEG_SCAN_END.search(data, position + length)
            if end is None:
                return
            position = end.start()
        else:
            position += max(2, length)


def _blocks_allowed(data: bytes) -> int:
    return _FREE_BLOCKS + len(data) // _BYTES_A_BLOCK


def _check_png(data: bytes, _limits: Limits) -> None:
    position, chunks, profiles, allowed = 8, 0, 0, _blocks_allowed(data)
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        chunks += 1
        profiles += kind == b"iCCP"
        if chunks > allowed:
            raise _too_much(f"PNG with more than {allowed} chunks")
        if profiles > _MAX_PNG_PROFILES:
            raise _too_much(f"PNG with more than {_MAX_PNG_PROFILES} colour profiles")
        if kind == b"IEND":
            return
        position += 12 + length


def _check_gif(data: bytes, _limits: Limits) -> None:
    """Blocks before the first picture; the rest of the file is not read."""
    position, blocks, allowed, comments = 13, 0, _blocks_allowed(data), 0
    if data[10] & 0x80:
        position += 3 << ((data[10] & 7) + 1)
    while data[position] not in (0x2C, 0x3B):
        extension = data[position] == 0x21
        is_comment = extension and data[position + 1] == 0xFE
        position += 2 if extension else 1
        blocks += 1
        while extension:
            size = data[position]
            position += 1 + size
            blocks += 1
            comments += size if is_comment else 0
            if size == 0 or blocks > allowed or comments > _MAX_GIF_COMMENTS:
                break
        if blocks > allowed:
            raise _too_much(f"GIF with more than {allowed} blocks before its picture")
        if comments > _MAX_GIF_COMMENTS:
            raise _too_much(f"GIF with more than {_MAX_GIF_COMMENTS} bytes of comments")


def _check_bmp(data: bytes, _limits: Limits) -> None:
    if struct.unpack_from("<I", data, 14)[0] < 40:
        return
    width, height = struct.unpack_from("<ii", data, 18)
    pixels = abs(width) * abs(height)
    if struct.unpack_from("<I", data, 30)[0] in (1, 2) and pixels > _MAX_RLE_PIXELS:
        raise _too_much(f"run-length coded BMP of {pixels} pixels")


def _tiff_entries(data: bytes) -> Iterator[tuple[str, int, int, int, bytes]]:
    """Byte order, tag, type, count and value (or offset) of each entry of the first directory.

    Raises:
        ImageRejected: TOO_LARGE, for more entries than any file has.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = 43 in data[2:4]
    if big:
        (offset,) = struct.unpack_from(order + "Q", data, 8)
        (count,) = struct.unpack_from(order + "Q", data, offset)
        entry, offset = struct.Struct(order + "HHQ8s"), offset + 8
    else:
        (offset,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, offset)
        entry, offset = struct.Struct(order + "HHI4s"), offset + 2
    if count > _MAX_TIFF_ENTRIES:
        raise _too_much(f"TIFF with {count} tags")
    end = min(len(data), offset + count * entry.size)
    whole = (end - offset) // entry.size * entry.size
    for values in entry.iter_unpack(data[offset : offset + whole]):
        yield (order, *values)


def _claimed(kind: int, number: int, value: bytes) -> int:
    size = number * _TIFF_SIZES.get(kind, 0)
    return size if size > len(value) else 0


def claims_too_much(exif: bytes) -> bool:
    """Whether an Exif block's tags claim far more bytes than it has.

    Pillow before 13 holds a copy of each value, and so gigabytes where all lie over one another.
    """
    tiff = exif
    while tiff.startswith(_EXIF_MARK):
        tiff = tiff.removeprefix(_EXIF_MARK)
    try:
        claimed = sum(_claimed(*entry[2:]) for entry in _tiff_entries(tiff))
    except (struct.error, IndexError, OverflowError):
        return False  # as check_structure has it
    except ImageRejected:
        return True
    return claimed > _MOST_CLAIMED * len(tiff)


def _check_tiff(data: bytes, _limits: Limits) -> None:
    """First directory: entries, what they claim, strips, and the size of a tile."""
    largest: dict[int, int] = {}
    claimed = 0
    for order, tag, kind, number, value in _tiff_entries(data):
        claimed += _claimed(kind, number, value)
        if tag in _TIFF_OFFSETS:
            if number > _MAX_TIFF_STRIPS:
                raise _too_much(f"TIFF with {number} strips")
        elif tag in (_TIFF_WIDTH, _TIFF_LENGTH, _TIFF_TILE_WIDTH, _TIFF_TILE_LENGTH):
            letter = _TIFF_INTEGERS.get(kind)
            if letter is None:
                raise ImageRejected(
                    RejectionCode.UNDECODABLE, f"TIFF whose tag {tag} is not a number"
                )
            side = struct.unpack_from(order + letter, value)[0]
            largest[tag] = max(largest.get(tag, 0), side)
    if claimed > _MOST_CLAIMED * len(data):  # see claims_too_much
        raise ImageRejected(
            RejectionCode.UNDECODABLE, f"TIFF of {len(data)} bytes whose tags claim {claimed}"
        )
    image = largest.get(_TIFF_WIDTH, 0) * largest.get(_TIFF_LENGTH, 0)
    tile = largest.get(_TIFF_TILE_WIDTH, 0) * largest.get(_TIFF_TILE_LENGTH, 0)
    if tile > max(_SMALL_TIFF_TILE, 2 * image):
        raise _too_much(f"TIFF of {image} pixels with a tile of {tile}")


_CHECKS: dict[str, Callable[[bytes, Limits], None]] = {
    "JPEG": _check_jpeg,
    "PNG": _check_png,
    "GIF": _check_gif,
    "BMP": _check_bmp,
    "TIFF": _check_tiff,
}
