"""Encoded bytes to an upright 8-bit RGB image."""

from __future__ import annotations

import numpy as np
from PIL import Image

from nima_client._quick_header import BaselineJpeg, baseline_jpeg, metadata_of
from nima_client.contract import RejectionCode
from nima_client.preprocess._errors import ImageRejected
from nima_client.preprocess._header import ImageHeader, open_lazily, orientation_of
from nima_client.preprocess._png import check_pixel_data
from nima_client.preprocess._quiet import QUIET
from nima_client.preprocess._resize import OPAQUE_MODE
from nima_client.preprocess._spec import DEFAULT_LIMITS, Limits, PreprocessSpec

try:
    import simplejpeg
except ModuleNotFoundError:  # the bare client decodes JPEG with Pillow, to the same pixels
    simplejpeg = None

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BACKGROUND = (255, 255, 255)
SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")


def decode(
    data: bytes, spec: PreprocessSpec | None = None, limits: Limits = DEFAULT_LIMITS
) -> Image.Image:
    """Decode one image.

    Args:
        data: the encoded file.
        spec: lets JPEG be decoded at a reduced scale that still suffices for this specification;
            None decodes at full size.
        limits: checked on the header, before any pixel is decoded.

    Returns:
        An RGB image, 8 bits per channel, upright.

    Raises:
        ImageRejected: with the reason; see :func:`nima_client.preprocess.inspect_header`.
    """
    return _decode(data, spec, limits, opaque=False)


def decode_opaque(
    data: bytes, spec: PreprocessSpec | None = None, limits: Limits = DEFAULT_LIMITS
) -> Image.Image:
    """As :func:`decode`, but the image may be of :data:`~._resize.OPAQUE_MODE`: a copy less."""
    return _decode(data, spec, limits, opaque=True)


def _decode(
    data: bytes, spec: PreprocessSpec | None, limits: Limits, *, opaque: bool
) -> Image.Image:
    ordinary = _ordinary_jpeg(data, limits)
    if ordinary is not None:
        decoded = _by_simplejpeg(data, ordinary.width, ordinary.height, spec, opaque)
        if decoded is not None:
            metadata = metadata_of(data, ordinary)
            return upright(decoded, orientation_of(metadata) if metadata else 1)
    image, header = open_lazily(data, limits)
    orientation = header.orientation
    with image:
        try:
            with QUIET:
                if header.format == "JPEG":
                    damaged = ordinary is not None
                    decoded = _decode_jpeg(data, image, header, spec, opaque, damaged)
                elif header.format == "PNG":
                    check_pixel_data(data)
                    seen = "exif" in image.info
                    decoded = _to_rgb(image, header)
                    if not seen:  # now with the chunks behind the pixels
                        orientation = orientation_of(image.info)
                else:
                    decoded = _to_rgb(image, header)
        except ImageRejected:
            raise
        except MemoryError:
            raise
        except Exception as error:
            # Pillow's decoders raise nearly anything on corrupt data.
            raise ImageRejected(
                RejectionCode.UNDECODABLE, f"corrupt {header.format}: {_one_line(error)}"
            ) from None
    return upright(decoded, orientation)


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """An image turned by its EXIF orientation; the same one where that is 1."""
    method = _TRANSPOSE.get(orientation)
    return image.transpose(method) if method is not None else image


def reduced_scale(width: int, height: int, spec: PreprocessSpec) -> int:
    """Denominator 1, 2, 4 or 8 of the DCT scale at which a JPEG of this size may be decoded."""
    if spec.jpeg_oversampling == 0:
        return 1
    needed = spec.resize_size * spec.jpeg_oversampling
    return next((s for s in (8, 4, 2) if min(width, height) >= needed * s), 1)


def _ordinary_jpeg(data: bytes, limits: Limits) -> BaselineJpeg | None:
    """What a JPEG says of itself, if simplejpeg may decode it without Pillow having opened it.

    That opening takes a tenth of the preprocessing of a small photo. None leaves the file to it.
    """
    if simplejpeg is None or len(data) > limits.max_bytes:
        return None
    found = baseline_jpeg(data)
    # Beyond either limit Pillow's side says so.
    most = Image.MAX_IMAGE_PIXELS
    allowed = limits.max_pixels if most is None else min(limits.max_pixels, 2 * most)
    return found if found is not None and found.width * found.height <= allowed else None


def _decode_jpeg(
    data: bytes,
    image: Image.Image,
    header: ImageHeader,
    spec: PreprocessSpec | None,
    opaque: bool,
    damaged: bool,
) -> Image.Image:
    if simplejpeg is not None and not damaged and header.mode in ("RGB", "L"):
        decoded = _by_simplejpeg(data, header.width, header.height, spec, opaque)
        if decoded is not None:
            return decoded
    scale = reduced_scale(header.width, header.height, spec) if spec is not None else 1
    if scale > 1:
        # draft() takes the largest scale at which both sides still reach what is asked.
        image.draft(None, (header.width // scale, header.height // scale))
    return _to_rgb(image, header)


def _by_simplejpeg(
    data: bytes, width: int, height: int, spec: PreprocessSpec | None, opaque: bool
) -> Image.Image | None:
    """The image as it is stored, or None for damaged files, of which Pillow is the arbiter."""
    scale = reduced_scale(width, height, spec) if spec is not None else 1
    try:
        pixels = simplejpeg.decode_jpeg(
            data,
            colorspace="RGBX" if opaque else "RGB",
            min_height=-(-height // scale),
            min_width=-(-width // scale),
        )
    except ValueError:
        return None
    if not opaque:
        return Image.fromarray(pixels)
    size = (pixels.shape[1], pixels.shape[0])
    return Image.frombuffer(OPAQUE_MODE, size, pixels, "raw", OPAQUE_MODE, 0, 1)


def _to_rgb(image: Image.Image, header: ImageHeader) -> Image.Image:
    image.load()
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image.copy() if image.readonly else image
    if mode in SIXTEEN_BIT_MODES or (mode == "I" and header.format == "PNG"):
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if mode in ("I", "F", "HSV"):
        raise ImageRejected(
            RejectionCode.UNSUPPORTED, f"{header.format} with {mode} pixels: save it as 8-bit RGB"
        )
    return on_white(image)


def on_white(image: Image.Image) -> Image.Image:
    """An 8-bit image as RGB, its transparent parts on white."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        background = Image.new("RGB", rgba.size, _BACKGROUND)
        background.paste(rgba, mask=rgba.getchannel("A"))
        return background
    return image.convert("RGB")


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (text if text and " at 0x" not in text else type(error).__name__)[:80]
