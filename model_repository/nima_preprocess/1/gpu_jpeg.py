"""Which JPEG files nvImageCodec reads as the reference does: their orientation, their colours.

Up to 0.9 it looks for the orientation in Exif alone, in the lower half of whatever type stands
there, while Pillow takes it from XMP too, and by its type. Of two Exif blocks it takes the last,
and one pair of them has it write beyond its buffer (orientation 6, then 3). Three components are
YCbCr to it, whatever Adobe's marker says. A file that may be one of these is the reference's.
"""

import struct

_SEGMENT = struct.Struct(">BBH")
_MOST_SEGMENTS = 200
_APP1, _APP14, _SCAN = 0xE1, 0xEE, 0xDA
_FRAMES = frozenset((0xC0, 0xC1, 0xC2))
_YCBCR = 1
"""What Adobe's marker has to say."""
_EXIF = b"Exif\0\0"
_NAME, _UPRIGHT = b"Orientation", b'tiff:Orientation="1"'
_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_ORIENTATION, _SHORT = 0x0112, 3
# Bytes of a value by its type, as TIFF has them.
_WIDTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
# The tags of which nvImageCodec reads values, and how many bytes at least, whatever the type.
_READ = {0x011A: 8, 0x011B: 8, 0x013E: 16, 0x013F: 48, 0x0211: 24, 0x0214: 48}
_STRINGS = frozenset((0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x8298))


def is_read_alike(data):
    """Whether nvImageCodec surely finds the orientation and the colours that the reference finds.

    Args:
        data: a JPEG file, bytes.
    """
    exif, in_xmp, position = None, False, 2
    try:
        for _ in range(_MOST_SEGMENTS):
            fill, marker, length = _SEGMENT.unpack_from(data, position)
            if fill != 0xFF or length < 2:
                return False
            if marker == _SCAN:
                break
            if marker in _FRAMES:
                if data[position + 9] == 3 and data[position + 10 : position + 19 : 3] == b"RGB":
                    return False
            elif marker == _APP1:
                block = data[position + 4 : position + 2 + length]
                if not block.startswith(_EXIF):
                    in_xmp = in_xmp or block.count(_NAME) != block.count(_UPRIGHT)
                elif exif is not None:
                    return False
                else:
                    exif = block[len(_EXIF) :]
            elif marker == _APP14 and _is_other_than_ycbcr(data, position + 4):
                return False
            position += 2 + length
        else:
            return False
        stated = _stated_orientation(exif) if exif is not None else 0
    except (struct.error, IndexError):
        return False
    # Where Exif has none, Pillow goes on to look into XMP.
    return stated is not None and (stated > 0 or not in_xmp)


def _is_other_than_ycbcr(data, start):
    return data[start : start + 5] == b"Adobe" and data[start + 11] != _YCBCR


def _stated_orientation(exif):
    """The orientation in a block of Exif that everybody reads alike, 1 to 8; 0 where there is none,
    None where readers may differ.
    """
    order = _ORDERS.get(exif[:4])
    if order is None:
        return None
    (start,) = struct.unpack_from(f"{order}L", exif, 4)
    (count,) = struct.unpack_from(f"{order}H", exif, start)
    stated, size = 0, len(exif)
    entry = struct.Struct(f"{order}HHLL")
    for position in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, number, offset = entry.unpack_from(exif, position)
        if tag == _ORIENTATION:
            (value,) = struct.unpack_from(f"{order}H", exif, position + 8)
            if stated or kind != _SHORT or number != 1 or value > 8:
                return None
            stated = value or 1  # some cameras write 0, which turns nothing
            continue
        # A value that lies outside ends the reading, before the orientation or behind it.
        width = _WIDTHS.get(kind)
        if width is None:
            return None
        if width * number > 4 and offset + width * number > size:
            return None
        if tag in _READ and offset + _READ[tag] > size:
            return None
        if tag in _STRINGS and number > 4 and offset + number > size:
            return None
    return stated
