"""Seeds of every format and the fuzzer's mutations; a number remakes any file."""

from __future__ import annotations

import io
import random
import struct
from functools import cache

import numpy as np
from PIL import Image, features

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_INTERESTING = (0, 1, 2, 4, 8, 16, 32, 64, 127, 128, 255)
_INTERESTING_WIDE = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 40000)


def _photo(mode: str, size: tuple[int, int] = (96, 64)) -> Image.Image:
    random_ = np.random.default_rng(3)
    image = Image.fromarray(random_.integers(0, 256, (6, 8, 4), np.uint8), "RGBA")
    image = image.resize(size, Image.Resampling.BICUBIC)
    if mode == "I;16":
        wide = np.asarray(image.convert("L")).astype(np.uint16) * 257
        return Image.fromarray(wide)
    return image.convert("RGB").convert(mode) if mode not in ("RGBA", "LA") else image.convert(mode)


def _exif(orientation: int = 6) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Maker" * 8
    exif[0x9286] = b"comment" * 4
    return exif.tobytes()


def _frames(count: int) -> list[Image.Image]:
    return [_photo("RGB").rotate(30 * i) for i in range(1, count)]


_VARIANTS: dict[str, list[tuple[str, dict[str, object]]]] = {
    "JPEG": [
        ("RGB", {"quality": 85}),
        ("RGB", {"progressive": True, "exif": True}),
        ("L", {"quality": 60}),
        ("CMYK", {}),
        ("RGB", {"subsampling": 0, "restart_marker_blocks": 2}),
        ("RGB", {"keep_rgb": True, "comment": b"<script>"}),
    ],
    "PNG": [
        ("RGB", {"exif": True}),
        ("RGBA", {}),
        ("P", {}),
        ("LA", {}),
        ("I;16", {}),
        ("1", {}),
        ("RGB", {"save_all": True, "frames": 3}),
    ],
    "WEBP": [
        ("RGB", {"exif": True}),
        ("RGBA", {"lossless": True}),
        ("RGB", {"save_all": True, "frames": 3}),
    ],
    "GIF": [
        ("P", {}),
        ("P", {"interlace": 1, "transparency": 3, "comment": b"hello"}),
        ("RGB", {"save_all": True, "frames": 4, "loop": 0}),
    ],
    "BMP": [("RGB", {}), ("P", {}), ("L", {}), ("1", {}), ("RGBA", {})],
    "TIFF": [
        ("RGB", {}),
        ("RGB", {"compression": "tiff_lzw", "exif": True}),
        ("RGB", {"compression": "jpeg"}),
        ("RGBA", {"compression": "tiff_adobe_deflate"}),
        ("CMYK", {"compression": "packbits"}),
        ("1", {"compression": "group4"}),
        ("I;16", {}),
        ("L", {"big_tiff": True}),
        ("RGB", {"save_all": True, "frames": 3}),
    ],
    "AVIF": [("RGB", {"speed": 10}), ("RGBA", {"speed": 10, "exif": True})],
}


def _rle_bmp() -> bytes:
    rows = b"".join(bytes((48, row * 7 % 256, 48, row)) + b"\0\0" for row in range(64))
    body = rows + b"\0\2\3\1" + b"\0\1"
    start = 54 + 1024
    head = struct.pack("<IHHI", start + len(body), 0, 0, start)
    info = struct.pack("<IiiHHIIiiII", 40, 96, 64, 1, 8, 1, len(body), 2835, 2835, 256, 0)
    return b"BM" + head + info + bytes(range(256)) * 4 + body


@cache
def seeds(kind: str) -> tuple[bytes, ...]:
    """Valid files of a format, small, one for each way it stores pixels."""
    made = []
    for mode, given in _VARIANTS[kind]:
        options = dict(given)
        if options.pop("exif", False):
            options["exif"] = _exif()
        frames = options.pop("frames", 0)
        if isinstance(frames, int) and frames:
            options["append_images"] = _frames(frames)
        buffer = io.BytesIO()
        _photo(mode).save(buffer, kind, **options)
        made.append(buffer.getvalue())
    if kind == "BMP":
        made.append(_rle_bmp())
    return tuple(made)


def formats() -> tuple[str, ...]:
    """The formats that this Pillow can write, hence fuzz."""
    return tuple(f for f in FORMATS if f != "AVIF" or features.check("avif"))


def _flip(data: bytearray, random_: random.Random) -> None:
    for _ in range(random_.choice((1, 1, 2, 4, 16))):
        data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)


def _set(data: bytearray, random_: random.Random) -> None:
    for _ in range(random_.choice((1, 1, 3, 8))):
        data[random_.randrange(len(data))] = random_.choice(_INTERESTING)


def _set_wide(data: bytearray, random_: random.Random) -> None:
    # Sizes, counts and offsets sit in the first bytes of every format.
    reach = len(data) if random_.random() < 0.4 else min(len(data), 256)
    at, order = random_.randrange(reach), random_.choice("<>")
    value = random_.choice(_INTERESTING_WIDE)
    packed = (
        struct.pack(order + "I", value)
        if random_.random() < 0.5
        else struct.pack(order + "H", value & 0xFFFF)
    )
    data[at : at + len(packed)] = packed


def _cut(data: bytearray, random_: random.Random) -> None:
    del data[random_.randrange(1, len(data)) :]


def _remove(data: bytearray, random_: random.Random) -> None:
    at = random_.randrange(len(data))
    del data[at : at + random_.choice((1, 2, 4, 13, 64, 500))]


def _repeat(data: bytearray, random_: random.Random) -> None:
    at = random_.randrange(len(data))
    piece = data[at : at + random_.choice((1, 4, 12, 64, 400))]
    data[at:at] = piece * random_.choice((1, 2, 16, 200))


def _noise(data: bytearray, random_: random.Random) -> None:
    at = random_.randrange(len(data))
    data[at : at + 32] = random_.randbytes(random_.choice((1, 8, 32, 64)))


_MUTATIONS = (_flip, _flip, _set, _set_wide, _set_wide, _cut, _remove, _repeat, _noise)


def mutated(number: int, seed: int = 0) -> tuple[str, bytes]:
    """Format of the seed, and file ``number`` of the endless series ``seed``."""
    random_ = random.Random(f"{seed}/{number}")
    kinds = formats()
    kind = kinds[number % len(kinds)]
    data = bytearray(random_.choice(seeds(kind)))
    if random_.random() < 0.08:
        # A polyglot: the head of one format, the tail of another.
        other = random_.choice(seeds(random_.choice(kinds)))
        data = data[: random_.randrange(4, len(data))] + other[random_.randrange(len(other)) :]
    for _ in range(random_.choice((1, 1, 2, 3, 6))):
        if len(data) < 2:
            break
        random_.choice(_MUTATIONS)(data, random_)
    return kind, bytes(data)
