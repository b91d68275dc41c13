"""From an upright RGB image to what the network sees."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from nima_client.contract import RejectionCode
from nima_client.preprocess._decode import decode_opaque
from nima_client.preprocess._errors import ImageRejected
from nima_client.preprocess._resize import resize
from nima_client.preprocess._spec import DEFAULT_LIMITS, Limits, PreprocessSpec


def to_pixels(image: Image.Image, spec: PreprocessSpec) -> npt.NDArray[np.uint8]:
    """Resize (antialiased) and crop.

    Args:
        image: RGB image of any size; a fourth channel is ignored.
        spec: the specification of the checkpoint.

    Returns:
        uint8 array [S, S, 3], RGB 0..255, with S = ``spec.crop_size``.
    """
    size = spec.resized_size(*image.size)
    image = resize(image, size, spec.interpolation)
    if size != (spec.crop_size, spec.crop_size):
        left, top = (size[0] - spec.crop_size) // 2, (size[1] - spec.crop_size) // 2
        image = image.crop((left, top, left + spec.crop_size, top + spec.crop_size))
    values = np.asarray(image, dtype=np.uint8)
    if values.shape[2] == 3:
        return values
    pixels = np.empty((*values.shape[:2], 3), np.uint8)
    for channel in range(3):  # four times as fast as values[..., :3], which numpy copies by threes
        pixels[..., channel] = values[..., channel]
    return pixels


def preprocess(
    data: bytes, spec: PreprocessSpec, limits: Limits = DEFAULT_LIMITS
) -> npt.NDArray[np.uint8]:
    """Encoded bytes to the network's pixels: those of ``to_pixels(decode(...))``, sooner.

    Args:
        data: the encoded file.
        spec: what the network was trained on.
        limits: checked on the header, before any pixel is decoded.

    Returns:
        uint8 array [S, S, 3], RGB 0..255.

    Raises:
        ImageRejected: with the reason.
    """
    image = decode_opaque(data, spec, limits)
    if not spec.fits(*image.size, limits):
        width, height = spec.resized_size(*image.size)
        raise ImageRejected(
            RejectionCode.TOO_LARGE,
            f"{image.width}x{image.height} pixels, {width}x{height} once the short side is "
            f"{spec.resize_size}: the limit is {limits.max_pixels} in all",
        )
    return to_pixels(image, spec)


def normalize(pixels: npt.NDArray[np.uint8], spec: PreprocessSpec) -> npt.NDArray[np.float32]:
    """What the network's graph does first; for code that runs a network outside that graph.

    Args:
        pixels: uint8 [S, S, 3] or [B, S, S, 3], RGB 0..255.
        spec: gives mean and std on the 0..1 scale.

    Returns:
        float32 array [B, 3, S, S] with (x / 255 - mean) / std.
    """
    batch = pixels if pixels.ndim == 4 else pixels[None]
    scaled = batch.astype(np.float32) / np.float32(255)
    centred = (scaled - np.asarray(spec.mean, np.float32)) / np.asarray(spec.std, np.float32)
    return np.ascontiguousarray(centred.transpose(0, 3, 1, 2))
