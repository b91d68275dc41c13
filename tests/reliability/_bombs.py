"""Small files that ask a decoder for minutes or gigabytes; files that are two things at once."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image


def _save(
    kind: str, size: tuple[int, int] = (64, 64), mode: str = "RGB", **options: object
) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, 128 if mode in ("L", "P") else (90, 120, 30)).save(
        buffer, kind, **options
    )
    return buffer.getvalue()


def png_dimensions(width: int, height: int) -> bytes:
    """A PNG that claims width x height and holds next to nothing."""
    small = _save("PNG")
    head = struct.pack(">II", width, height) + small[24:29]
    crc = zlib.crc32(b"IHDR" + head)
    return small[:16] + head + struct.pack(">I", crc) + small[33:]


def png_zeros(width: int, height: int) -> bytes:
    """A PNG whose compressed pixels inflate a thousandfold."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packer = zlib.compressobj(9)
    row = bytes(1 + 3 * width)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_chunks(size: int) -> bytes:
    """A PNG of empty chunks."""
    small, empty = _save("PNG"), _chunk(b"abCd", b"")
    return small[:33] + empty * (size // len(empty)) + small[33:]


def png_profiles(count: int) -> bytes:
    """A PNG with colour profiles of a megabyte of zeros each."""
    small = _save("PNG")
    profile = _chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(1_000_000), 9))
    return small[:33] + profile * count + small[33:]


def png_texts(count: int) -> bytes:
    """A PNG with compressed comments of a megabyte of zeros each."""
    small = _save("PNG")
    text = _chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(1_000_000), 9))
    return small[:33] + text * count + small[33:]


def jpeg_fill(size: int) -> bytes:
    """A JPEG with a long run of filling bytes before its first segment."""
    photo = _save("JPEG")
    return photo[:2] + b"\xff" * size + photo[2:]


def jpeg_junk(size: int) -> bytes:
    """A JPEG with bytes between its segments that are no segment."""
    photo = _save("JPEG")
    return photo[:20] + bytes(size) + photo[20:]


def jpeg_segments(size: int, marker: int = 0xE5) -> bytes:
    """A JPEG of empty segments."""
    photo = _save("JPEG")
    return photo[:2] + bytes((0xFF, marker, 0, 2)) * (size // 4) + photo[2:]


def jpeg_ends(size: int) -> bytes:
    """A JPEG of end markers before its beginning."""
    photo = _save("JPEG")
    return photo[:2] + b"\xff\xd9" * (size // 2) + photo[2:]


def jpeg_exif_blocks(count: int) -> bytes:
    """A JPEG with many Exif segments, which Pillow joins."""
    photo = _save("JPEG")
    block = b"Exif\0\0" + bytes(65_000)
    segment = b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block
    return photo[:2] + segment * count + photo[2:]


def jpeg_exif_overlapping(tags: int, size: int) -> bytes:
    """A JPEG whose Exif has many tags that all claim the same bytes."""
    photo = _save("JPEG")
    block = b"Exif\0\0" + _overlapping(tags, size).ljust(65_000, b"\0")
    return photo[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + photo[2:]


def jpeg_scans(count: int, side: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    photo = _save("JPEG", (side, side), "L", progressive=True)
    start, end = photo.rfind(b"\xff\xda"), photo.rfind(b"\xff\xd9")
    return photo[:end] + photo[start:end] * count + photo[end:]


def gif_frame(width: int, height: int) -> bytes:
    """A GIF of a tiny canvas whose one frame claims to be huge."""
    small = _save("GIF", (8, 8), "P")
    at = small.index(b",", 13 + (3 << ((small[10] & 7) + 1)))
    return small[: at + 5] + struct.pack("<HH", width, height) + small[at + 9 :]


def gif_blocks(size: int, comment: int = 0, cut: bool = False) -> bytes:
    """A GIF of empty extensions, or with one endless comment in such blocks, before its picture.

    Or cut in the comment.
    """
    small = _save("GIF", (8, 8), "P")
    at = 13 + (3 << ((small[10] & 7) + 1))
    if comment:
        body = b"!\xfe" + (bytes([comment]) + b"a" * comment) * (size // (comment + 1)) + b"\0"
    else:
        body = b"!\x99\0" * (size // 3)
    return small[:at] + body + small[at:] if not cut else small[:at] + body[:-comment]


def bmp_run_length(side: int) -> bytes:
    """A run-length coded BMP of almost empty lines."""
    body = b"\x01\x07\x00\x00" * side + b"\0\1"
    head = struct.pack("<IHHI", 1078 + len(body), 0, 0, 1078)
    info = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + head + info + bytes(1024) + body


def _tiff(entries: list[tuple[int, int, int, int]], rest: bytes = b"") -> bytes:
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0\x08\0\0\0" + directory + bytes(4) + rest


def tiff_fax_noise(rows: int) -> bytes:
    """A fax-coded TIFF with an error in every row, each of which libtiff would tell of."""
    body = b"0" * (3 * rows)
    entries = [
        (256, 4, 1, 100), (257, 4, 1, rows), (258, 3, 1, 1), (259, 3, 1, 4), (262, 3, 1, 1),
        (273, 4, 1, 256), (277, 3, 1, 1), (278, 4, 1, rows), (279, 4, 1, len(body)),
    ]  # fmt: skip
    return _tiff(entries).ljust(256, b"\0") + body


def tiff_tile(side: int) -> bytes:
    """A TIFF of 10x10 pixels in one deflated tile of side x side."""
    packed = zlib.compress(bytes(1 << 22), 9)
    entries = [
        (256, 3, 1, 10), (257, 3, 1, 10), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1),
        (277, 3, 1, 1), (322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, 256),
        (325, 4, 1, len(packed)),
    ]  # fmt: skip
    return _tiff(entries).ljust(256, b"\0") + packed


def tiff_strips(count: int) -> bytes:
    """A TIFF with an offset for each of very many strips."""
    entries = [
        (256, 3, 1, 10), (257, 3, 1, 10), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, count, 256), (277, 3, 1, 1), (278, 3, 1, 1), (279, 4, count, 256),
    ]  # fmt: skip
    return _tiff(entries).ljust(256, b"\0") + bytes(4 * count)


def _overlapping(tags: int, size: int) -> bytes:
    return _tiff([(40_000 + i, 7, size, 8) for i in range(tags)])


def tiff_overlapping(tags: int, size: int) -> bytes:
    """A TIFF whose tags all claim the whole file."""
    return _overlapping(tags, size).ljust(size + 8, b"\0")


def png_exif_overlapping(tags: int, size: int) -> bytes:
    """A PNG whose Exif has many tags that all claim all of it."""
    png = _save("PNG")
    return png[:33] + _chunk(b"eXIf", _overlapping(tags, size).ljust(size + 8, b"\0")) + png[33:]


def png_profile_overlapping(tags: int, size: int) -> bytes:
    """The same in text, as ImageMagick writes it."""
    exif = b"Exif\0\0" + _overlapping(tags, size).ljust(size + 8, b"\0")
    text = f"\nexif\n{len(exif):8}\n{exif.hex()}\n".encode()
    png, packed = _save("PNG"), zlib.compress(text)
    return png[:33] + _chunk(b"zTXt", b"Raw profile type exif\0\0" + packed) + png[33:]


def webp_exif_overlapping(tags: int, size: int) -> bytes:
    """A WebP whose Exif has many tags that all claim all of it."""
    return _save("WEBP", exif=_overlapping(tags, size).ljust(size + 8, b"\0"))


def tiff_pages(count: int) -> bytes:
    """A TIFF of many pages: the first one counts."""
    pages = [Image.new("L", (32, 32), i % 256) for i in range(count)]
    buffer = io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    return buffer.getvalue()


def webp_frames(count: int) -> bytes:
    """An animated WebP of many frames: the first one counts."""
    frames = [Image.new("RGB", (32, 32), (i % 256, 7, i // 256)) for i in range(count)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    return buffer.getvalue()


def avif_frames(count: int) -> bytes:
    """An AVIF sequence of many frames: the first one counts."""
    frames = [Image.new("RGB", (32, 32), (i % 256, 7, i // 256)) for i in range(count)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "AVIF", save_all=True, append_images=frames[1:], speed=10)
    return buffer.getvalue()


def gif_frames(count: int) -> bytes:
    """An animated GIF of many frames: the first one counts."""
    frames = [Image.new("P", (32, 32), i % 256) for i in range(count)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def png_frames(count: int) -> bytes:
    """An animated PNG of many frames: the first one counts."""
    frames = [Image.new("L", (32, 32), i % 256) for i in range(count)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def webp_canvas(side: int) -> bytes:
    """A WebP of 8x8 pixels on a huge canvas."""
    small = _save("WEBP", (8, 8), lossless=True)
    extent = struct.pack("<I", side - 1)[:3]
    head = b"VP8X" + struct.pack("<I", 10) + bytes((2, 0, 0, 0)) + extent + extent
    anim = b"ANIM" + struct.pack("<IIH", 6, 0, 0)
    frame_head = bytes(6) + b"\7\0\0" + b"\7\0\0" + b"\x64\0\0" + b"\0"
    frame = b"ANMF" + struct.pack("<I", len(frame_head) + len(small) - 12) + frame_head + small[12:]
    body = b"WEBP" + head + anim + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def avif_size(side: int, claimed: int) -> bytes:
    """An AVIF of side x side pixels whose container claims another size."""
    data = bytearray(_save("AVIF", (side, side), speed=10))
    at = data.find(b"ispe")
    while at >= 0:
        data[at + 8 : at + 16] = struct.pack(">II", claimed, claimed)
        at = data.find(b"ispe", at + 4)
    return bytes(data)


def polyglots() -> dict[str, bytes]:
    """Files that are an image and something else, or two images, by what they are."""
    jpeg, png, gif = _save("JPEG"), _save("PNG"), _save("GIF", mode="P")
    return {
        "JPEG with a ZIP behind it": jpeg + b"PK\3\4" + bytes(100) + b"PK\5\6" + bytes(18),
        "JPEG with HTML in a comment": jpeg[:2]
        + b"\xff\xfe\0\x1b<script>alert(1)</script>"[:29]
        + jpeg[2:],
        "GIF that is JavaScript": b"GIF89a/*" + gif[8:] + b"*/=1;alert(1)",
        "PNG behind a JPEG": jpeg + png,
        "JPEG behind a PNG": png + jpeg,
        "PDF with a JPEG inside": b"%PDF-1.4\n" + jpeg,
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>",
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "pickle": b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x05posix",
        "ZIP": b"PK\3\4" + bytes(60),
        "BM and text": b"BMW is a car maker, not a bitmap",
    }
