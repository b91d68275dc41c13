"""Controlled changes to a photo: the one home used by distillation, `nima analyse` and the tests.

Each function takes an RGB PIL image, a strength in its own unit and a random generator (used only
where the change is random), and returns a new RGB image. Lengths are relative to the short side,
so that a strength means the same at any resolution.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

Function = Callable[[Image.Image, float, np.random.Generator], Image.Image]


def _from_float(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(values + 0.5, 0, 255).astype(np.uint8))


def gaussian_blur(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Gaussian blur; ``strength`` is sigma in percent of the short side."""
    return image.filter(ImageFilter.GaussianBlur(strength / 100 * min(image.size)))


def motion_blur(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Straight motion in a random direction; ``strength`` is its length, % of the short side."""
    length = strength / 100 * min(image.size)
    angle = rng.uniform(0, math.pi)
    steps = max(2, math.ceil(length) + 1)
    reach = math.ceil(length / 2) + 1
    pixels = np.asarray(image, dtype=np.float32)
    padded = np.pad(pixels, ((reach, reach + 1), (reach, reach + 1), (0, 0)), mode="edge")
    total = np.zeros_like(pixels)
    height, width = pixels.shape[:2]
    for position in np.linspace(-length / 2, length / 2, steps):
        x, y = reach + position * math.cos(angle), reach + position * math.sin(angle)
        left, top = math.floor(x), math.floor(y)
        # Bilinear between whole pixels, so that a motion of less than one pixel blurs too.
        for dy, row_weight in ((0, 1 - (y - top)), (1, y - top)):
            for dx, column_weight in ((0, 1 - (x - left)), (1, x - left)):
                window = padded[top + dy : top + dy + height, left + dx : left + dx + width]
                total += np.float32(row_weight * column_weight) * window
    return _from_float(total / steps)


def noise(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Independent Gaussian noise on each channel; ``strength`` is sigma in 8-bit levels."""
    pixels = np.asarray(image, dtype=np.float32)
    grain = rng.standard_normal(pixels.shape, dtype=np.float32)
    return _from_float(pixels + np.float32(strength) * grain)


def jpeg(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """JPEG compression; ``strength`` is 100 minus the quality."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=max(1, round(100 - strength)))
    with Image.open(buffer) as compressed:
        return compressed.convert("RGB")


def exposure(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Exposure change in stops, applied to linear light (gamma 2.2) and clipped."""
    linear = (np.arange(256) / 255.0) ** 2.2 * 2.0**strength
    table = np.clip(linear, 0, 1) ** (1 / 2.2) * 255
    return image.point([round(float(value)) for value in table] * 3)


def contrast(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Contrast about the mean grey; ``strength`` is log2 of the factor (0: as is)."""
    return ImageEnhance.Contrast(image).enhance(2.0**strength)


def saturation(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Saturation; ``strength`` is the factor minus 1: -1 is grey, 0 as is, 1 doubled."""
    return ImageEnhance.Color(image).enhance(1.0 + strength)


def colour_cast(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Warm (positive) or cool (negative) cast: red gains ``1 + s``, blue ``1 - s``."""
    gains = np.array([1 + strength, 1.0, 1 - strength], dtype=np.float32)
    return _from_float(np.asarray(image, dtype=np.float32) * gains)


def crop(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Centred crop; ``strength`` is the part of each side that is cut away, in [0, 1)."""
    return _window(image, 1 - strength, 0.5, 0.5)


def off_centre(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """A window of 60 % of each side moved from the centre (0) towards a random corner (1)."""
    signs = rng.choice([-1.0, 1.0], size=2)
    x, y = 0.5 + 0.5 * strength * signs
    return _window(image, 0.6, float(x), float(y))


def _window(image: Image.Image, side: float, x: float, y: float) -> Image.Image:
    width, height = (max(1, round(length * side)) for length in image.size)
    left = round((image.width - width) * x)
    top = round((image.height - height) * y)
    return image.crop((left, top, left + width, top + height))


def rotation(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Rotation by ``strength`` degrees, cut to the largest upright rectangle of the same aspect."""
    angle = math.radians(abs(strength))
    turned = image.rotate(strength, resample=Image.Resampling.BICUBIC)
    width, height = image.size
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    scale = min(width / (width * cos + height * sin), height / (width * sin + height * cos))
    return _window(turned, scale, 0.5, 0.5)


@dataclass(frozen=True)
class Distortion:
    """A change with its unit, the levels that `nima analyse` plots and the range trained on.

    ``train_range`` is None for a kind that distillation never shows to the student: held-out
    agreement is measured on those kinds too. ``test_levels`` lie outside ``train_range``.
    """

    function: Function
    unit: str
    levels: tuple[float, ...]
    train_range: tuple[float, float] | None
    test_levels: tuple[float, ...]
    harmful: bool = False


DISTORTIONS: dict[str, Distortion] = {
    "gaussian_blur": Distortion(
        gaussian_blur,
        "sigma, % of short side",
        (0.25, 0.5, 1.0, 2.0, 4.0),
        (0.15, 2.2),
        (3.0,),
        True,
    ),
    "motion_blur": Distortion(
        motion_blur, "length, % of short side", (1.0, 2.0, 4.0, 8.0), None, (2.0, 5.0), True
    ),
    "noise": Distortion(
        noise, "sigma, 8-bit levels", (5.0, 10.0, 20.0, 40.0, 80.0), (3.0, 45.0), (60.0,), True
    ),
    "jpeg": Distortion(
        jpeg, "100 - quality", (30.0, 60.0, 80.0, 90.0, 95.0), (30.0, 90.0), (94.0,), True
    ),
    "exposure": Distortion(
        exposure, "stops", (-3.0, -2.0, -1.0, 1.0, 2.0, 3.0), (-2.0, 2.0), (-2.7, 2.7)
    ),
    "contrast": Distortion(
        contrast, "log2 of factor", (-2.0, -1.0, -0.5, 0.5, 1.0), (-1.5, 1.0), (-2.0, 1.4)
    ),
    "saturation": Distortion(saturation, "factor - 1", (-1.0, -0.5, 0.5, 1.0), (-1.0, 1.0), (1.5,)),
    "colour_cast": Distortion(
        colour_cast, "red gain - 1", (-0.4, -0.2, -0.1, 0.1, 0.2, 0.4), (-0.3, 0.3), (-0.4, 0.4)
    ),
    "crop": Distortion(crop, "part cut away", (0.1, 0.2, 0.4, 0.6), (0.05, 0.5), (0.6,)),
    "off_centre": Distortion(
        off_centre, "distance to corner", (0.25, 0.5, 0.75, 1.0), None, (0.5, 1.0)
    ),
    "rotation": Distortion(
        rotation, "degrees", (2.0, 5.0, 10.0, 20.0, 45.0), (-15.0, 15.0), (-25.0, 25.0)
    ),
}


def distort(
    image: Image.Image, kind: str, strength: float, rng: np.random.Generator | None = None
) -> Image.Image:
    """Apply the distortion named ``kind``.

    Args:
        image: RGB.
        kind: a key of :data:`DISTORTIONS`.
        strength: in the unit of that kind.
        rng: for the random kinds; None uses a fixed seed, so that a photo changes the same way.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in DISTORTIONS:
        raise ValueError(f"unknown distortion {kind!r}; known: {', '.join(DISTORTIONS)}")
    return DISTORTIONS[kind].function(image, strength, rng or np.random.default_rng(0))
