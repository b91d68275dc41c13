"""Every format and every oddity: decoded to the right pixels, or refused with the right code."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, TiffImagePlugin, features

from nima_client._pixels import encode_pil
from nima_client.contract import RejectionCode
from nima_client.preprocess import (
    ImageRejected,
    Limits,
    PreprocessSpec,
    decode,
    inspect_header,
    preprocess,
)

SPEC = PreprocessSpec()


def save(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(width: int = 96, height: int = 64) -> Image.Image:
    x = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    y = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))


def refusal(data: bytes, limits: Limits | None = None) -> ImageRejected:
    with pytest.raises(ImageRejected) as caught:
        preprocess(data, SPEC, *([limits] if limits else []))
    assert "\n" not in caught.value.detail
    assert " at 0x" not in caught.value.detail
    return caught.value


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 6),
        ("JPEG", {"quality": 97, "subsampling": 0}, 6),
        ("JPEG", {"quality": 97, "progressive": True}, 8),
        ("AVIF", {"quality": 95}, 8),
        ("GIF", {}, 50),
    ],
)
def test_formats_give_the_original_pixels(kind, options, tolerance):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    original = gradient()
    data = save(original, kind, **options)
    assert inspect_header(data).format == kind
    difference = np.abs(np.asarray(decode(data), np.int16) - np.asarray(original, np.int16))
    assert difference.mean() <= tolerance / 4 + (0 if tolerance == 0 else 1)
    assert difference.max() <= tolerance * 2


def test_pixels_have_the_shape_the_network_wants():
    pixels = preprocess(save(gradient(), "PNG"), PreprocessSpec(resize_size=256, crop_size=224))
    assert pixels.shape == (224, 224, 3)
    assert pixels.dtype == np.uint8


def test_shortest_keeps_the_aspect_ratio_and_crops_the_centre():
    image = Image.new("RGB", (400, 100), (0, 0, 0))
    image.paste((255, 255, 255), (150, 0, 250, 100))
    spec = PreprocessSpec(resize="shortest", resize_size=100, crop_size=100)
    assert preprocess(save(image, "PNG"), spec).min() == 255


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1)])
def test_shortest_refuses_a_line_that_it_would_make_gigabytes_of(size):
    data = save(Image.new("RGB", size), "PNG")
    with pytest.raises(ImageRejected, match="TOO_LARGE"):
        preprocess(data, PreprocessSpec(resize="shortest"))
    assert preprocess(data, PreprocessSpec()).shape == (224, 224, 3)
    small = save(Image.new("RGB", (20, 20)), "PNG")
    for resize in ("stretch", "shortest"):
        spec = PreprocessSpec(resize=resize)
        assert preprocess(small, spec, Limits(max_pixels=400)).shape == (224, 224, 3)
    panorama = save(Image.new("RGB", (size[0] + 9, size[1] + 9)), "PNG")
    assert preprocess(panorama, PreprocessSpec(resize="shortest")).shape == (224, 224, 3)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK"])
def test_other_modes_become_rgb(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    image = gradient().convert(mode)
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(np.asarray(decode(save(image, kind))), expected)


def test_cmyk_jpeg_is_not_inverted():
    image = Image.new("RGB", (64, 64), (200, 40, 40)).convert("CMYK")
    red, green, blue = np.asarray(decode(save(image, "JPEG", quality=95))).mean((0, 1))
    assert red > 150
    assert green < 90
    assert blue < 90


def test_sixteen_bit_grey_png_is_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(16, 0)
    pixels = np.asarray(decode(save(Image.fromarray(ramp), "PNG")))[0, :, 0]
    assert pixels[0] == 0
    assert pixels[-1] == 255
    assert np.abs(pixels.astype(int) - np.arange(256)).max() <= 1


def test_ycck_jpeg_is_converted_as_libjpeg_says():
    """A CMYK file whose Adobe marker is made to say YCCK: its samples then mean other colours."""
    colour = (200, 40, 40)
    data = bytearray(save(Image.new("RGB", (64, 64), colour).convert("CMYK"), "JPEG", quality=100))
    data[data.index(b"Adobe") + 11] = 2
    luma, blue, red = colour  # Adobe stores inverted CMYK, which for this image is its RGB
    expected = (
        255 - (luma + 1.402 * (red - 128)),
        255 - (luma - 0.344136 * (blue - 128) - 0.714136 * (red - 128)),
        255 - (luma + 1.772 * (blue - 128)),
    )
    got = np.asarray(decode(bytes(data)), np.float64)
    assert np.abs(got - np.clip(expected, 0, 255)).max() <= 3


def test_sixteen_bit_grey_tiff_is_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(16, 0)
    pixels = np.asarray(decode(save(Image.fromarray(ramp), "TIFF")))[0, :, 0]
    assert np.abs(pixels.astype(int) - np.arange(256)).max() <= 1


def _png16(colour_type: int, *channels: int, side: int = 8) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    row = b"\0" + struct.pack(f">{len(channels)}H", *channels) * side
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 16, colour_type, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(row * side))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("colour_type", "channels", "expected"),
    [
        (2, (32896, 0, 65535), (128, 0, 255)),
        (6, (32896, 0, 65535, 65535), (128, 0, 255)),
        (6, (0, 0, 0, 32896), (127, 127, 127)),
        (4, (32896, 65535), (128, 128, 128)),
        (4, (0, 0), (255, 255, 255)),
    ],
)
def test_sixteen_bit_colour_png_is_scaled_not_clipped(colour_type, channels, expected):
    got = np.asarray(decode(_png16(colour_type, *channels)), np.int16)[0, 0]
    assert np.abs(got - expected).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_alpha_is_composited_on_white(mode):
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 16, 32))
    kind = "PNG"
    if mode == "PA":
        image = image.quantize()
    elif mode == "LA":
        image = image.convert("LA")
    pixels = np.asarray(decode(save(image, kind)))
    assert pixels[5, 5].tolist() == [0, 0, 0]
    assert pixels[5, 28].tolist() == [255, 255, 255]


@pytest.mark.parametrize("kind", ["WEBP", "TIFF", "GIF", "AVIF"])
def test_alpha_is_composited_on_white_in_every_format_that_has_it(kind):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 16, 32))
    options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}}.get(kind, {})
    pixels = np.asarray(decode(save(image, kind, **options)))
    assert pixels[5, 5].tolist() == [0, 0, 0]
    assert pixels[5, 28].tolist() == [255, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation_is_applied(kind, orientation):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    image = gradient()
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 97, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    data = save(image, kind, exif=exif, **options)
    from PIL import ImageOps

    with Image.open(io.BytesIO(data)) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"), np.int16)
    got = np.asarray(decode(data), np.int16)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= 2


def test_absurd_orientation_and_broken_exif_are_ignored():
    exif = Image.Exif()
    exif[0x0112] = 77
    assert inspect_header(save(gradient(), "JPEG", exif=exif)).orientation == 1
    assert preprocess(save(gradient(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), SPEC).any()


def test_icc_profile_is_ignored():
    image = gradient()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    plain, tagged = save(image, "PNG"), save(image, "PNG", icc_profile=profile)
    assert np.array_equal(preprocess(plain, SPEC), preprocess(tagged, SPEC))


def test_first_frame_counts():
    frames = [Image.new("RGB", (32, 32), c) for c in ((250, 0, 0), (0, 250, 0))]
    kinds = ("GIF", "WEBP", "TIFF", "PNG", *(["AVIF"] if features.check("avif") else []))
    for kind in kinds:
        options = {"lossless": True} if kind == "WEBP" else {}
        data = save(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        got = np.asarray(decode(data), np.int16)[0, 0]
        assert np.abs(got - (250, 0, 0)).max() <= (2 if kind == "AVIF" else 0), kind


def test_refusals_name_their_reason():
    jpeg = save(gradient(512, 384), "JPEG")
    assert refusal(b"").code is RejectionCode.EMPTY
    assert refusal(b"just a text file").code is RejectionCode.UNSUPPORTED
    assert refusal(b"%PDF-1.7 ...").code is RejectionCode.UNSUPPORTED
    assert refusal(jpeg[: len(jpeg) // 2]).code is RejectionCode.UNDECODABLE
    assert refusal(jpeg[:20]).code is RejectionCode.UNDECODABLE
    assert refusal(jpeg, Limits(max_bytes=100)).code is RejectionCode.TOO_LARGE
    assert refusal(jpeg, Limits(max_pixels=1000)).code is RejectionCode.TOO_LARGE
    png = save(gradient(), "PNG")
    assert refusal(png[:90]).code is RejectionCode.UNDECODABLE
    assert refusal(png[:12]).code is RejectionCode.UNDECODABLE
    floats = save(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF")
    assert refusal(floats).code is RejectionCode.UNSUPPORTED


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
def test_lab_is_shown_in_its_colours(compression: str | None) -> None:
    """As Photoshop and scanners write it; a PIL image of this mode is no other photo."""
    photo = gradient().point(lambda value: 64 + value // 2)  # well within the gamut of both
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(photo, *profiles, outputMode="LAB")
    assert lab is not None
    data = save(lab, "TIFF", compression=compression)
    assert inspect_header(data).mode == "LAB"
    pixels = np.asarray(decode(data))
    assert np.array_equal(pixels, np.asarray(decode(encode_pil(lab))))
    difference = np.abs(pixels.astype(int) - np.asarray(photo))
    assert difference.mean() < 1.5  # eight bits of LAB are coarser
    assert difference.max() <= 16


def test_a_thumbnail_is_not_scored_in_the_place_of_its_raw_photo():
    """NEF and DNG are TIFF: a small copy first, the photo in a directory below it (tag 330)."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[254] = 1  # "a reduced-resolution version of another image in this file"
    assert decode(save(gradient(), "TIFF", tiffinfo=tags)).size == (96, 64)  # there is none
    tags.tagtype[330], tags[330] = 4, 8
    error = refusal(save(gradient(), "TIFF", tiffinfo=tags))
    assert error.code is RejectionCode.UNSUPPORTED
    assert "raw" in error.detail
    tags[254] = 0
    assert decode(save(gradient(), "TIFF", tiffinfo=tags)).size == (96, 64)


def test_decompression_bombs_are_refused_on_the_header():
    body = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + b"IHDR"
        + body
        + struct.pack(">I", zlib.crc32(b"IHDR" + body))
        + struct.pack(">I", 0)
        + b"IDAT"
        + struct.pack(">I", zlib.crc32(b"IDAT"))
    )
    assert refusal(bomb).code is RejectionCode.TOO_LARGE
    jpeg = bytearray(save(gradient(), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 30000, 30000)
    assert refusal(bytes(jpeg)).code is RejectionCode.TOO_LARGE


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("offset", [1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_a_directory_beyond_any_file_is_a_refusal(order, offset):
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HHHQ", 43, 8, 0, offset)
    assert refusal(head + bytes(64)).code is RejectionCode.UNDECODABLE


def test_one_pixel_is_enough():
    assert preprocess(save(Image.new("RGB", (1, 1), (9, 9, 9)), "PNG"), SPEC).max() == 9


def test_specification_round_trip_and_identity():
    spec = PreprocessSpec(resize="shortest", resize_size=256, mean=(0.485, 0.456, 0.406))
    assert PreprocessSpec.from_dict(spec.to_dict()) == spec
    assert spec.id != SPEC.id
    assert PreprocessSpec().id == SPEC.id
    with pytest.raises(ValueError, match="newer version"):
        PreprocessSpec.from_dict({**spec.to_dict(), "gamma": 2})
    with pytest.raises(ValueError, match="crop_size"):
        PreprocessSpec(crop_size=300)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["mean", "std", "jpeg_oversampling"])
def test_a_specification_holds_finite_numbers(name, value):
    given = {name: value if name == "jpeg_oversampling" else [0.5, value, 0.5]}
    with pytest.raises(ValueError, match=name):
        PreprocessSpec.from_dict(given)
