"""What happens to a photo before the network sees it, as data that travels with the weights."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from nima_client.contract import DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS

# Raise when the code below changes pixels for an unchanged specification.
_ALGORITHM_VERSION = 1


@dataclass(frozen=True)
class PreprocessSpec:
    """Preprocessing specification of a checkpoint.

    Attributes:
        resize: ``"stretch"`` resizes to ``resize_size`` x ``resize_size`` whatever the aspect ratio
            (NIMA, Talebi & Milanfar 2017, section III; idealo's implementation); ``"shortest"``
            resizes the short side to ``resize_size`` and keeps the aspect ratio.
        resize_size: pixels per side after the resize, before the crop.
        crop_size: side of the central crop in pixels; the network's input size.
        interpolation: Pillow's antialiased ``"bilinear"`` (triangle) or ``"bicubic"`` filter.
        mean: per-channel mean (RGB) on the 0..1 scale, subtracted in the network's graph.
        std: per-channel standard deviation (RGB) on the 0..1 scale, divided by in the graph.
        jpeg_oversampling: smallest ratio of decoded to resized side at which a JPEG may still be
            decoded at a reduced DCT scale; 0 switches reduced decoding off.
    """

    resize: Literal["stretch", "shortest"] = "stretch"
    resize_size: int = 224
    crop_size: int = 224
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    jpeg_oversampling: float = 2.0

    def __post_init__(self) -> None:
        if self.resize not in ("stretch", "shortest"):
            raise ValueError(f"resize must be 'stretch' or 'shortest', not {self.resize!r}")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(
                f"interpolation must be 'bilinear' or 'bicubic', not {self.interpolation!r}"
            )
        if not 1 <= self.crop_size <= self.resize_size:
            raise ValueError(
                f"crop_size must lie in 1..resize_size ({self.resize_size}), not {self.crop_size}"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError("mean and std need three values each, and std must be positive")
        if self.jpeg_oversampling != 0 and self.jpeg_oversampling < 1:
            raise ValueError("jpeg_oversampling must be 0 (off) or at least 1")
        # json reads NaN and Infinity, which pass every comparison above.
        if not all(map(math.isfinite, (*self.mean, *self.std, self.jpeg_oversampling))):
            raise ValueError("mean, std and jpeg_oversampling must be finite numbers")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        values = asdict(self)
        values["mean"], values["std"] = list(self.mean), list(self.std)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PreprocessSpec:
        """Read :meth:`to_dict` back.

        Raises:
            ValueError: an unknown field or a value out of range.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"unknown preprocessing fields {unknown}: made by a newer version of this project?"
            )
        given = dict(values)
        for name in ("mean", "std"):
            if name in given:
                given[name] = tuple(float(v) for v in given[name])
        return cls(**given)

    def resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after the resize, before the crop, of an image of this size; pixels."""
        side = self.resize_size
        if self.resize == "stretch":
            return side, side
        short = min(width, height)
        return max(side, round(width * side / short)), max(side, round(height * side / short))

    def fits(self, width: int, height: int, limits: Limits) -> bool:
        """Whether an image of this size, in pixels, stays within the limits when it is resized.

        With ``"shortest"`` a line of pixels becomes a band of gigabytes.
        """
        resized_width, resized_height = self.resized_size(width, height)
        return resized_width * resized_height <= max(limits.max_pixels, self.resize_size**2)

    @property
    def id(self) -> str:
        """Identity of the specification: 16 hex digits that change whenever the pixels may."""
        canonical = json.dumps(
            {"algorithm": _ALGORITHM_VERSION, **self.to_dict()}, sort_keys=True
        ).encode()
        return hashlib.sha256(canonical).hexdigest()[:16]


@dataclass(frozen=True)
class Limits:
    """What one image may cost; checked on the header, before decoding.

    Attributes:
        max_bytes: largest encoded size in bytes.
        max_pixels: largest width x height in pixels.
    """

    max_bytes: int = DEFAULT_MAX_BYTES
    max_pixels: int = DEFAULT_MAX_PIXELS


DEFAULT_LIMITS = Limits()
