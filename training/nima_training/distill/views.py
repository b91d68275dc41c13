"""Random views of photos, drawn from a seed so that any view can be made again by its number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from nima_client.preprocess import ImageRejected, PreprocessSpec, decode, to_pixels
from nima_training.distill.config import ViewConfig
from nima_training.distort import DISTORTIONS, distort

TRAIN_KINDS = tuple(kind for kind, entry in DISTORTIONS.items() if entry.train_range is not None)


def open_photo(path: Path) -> Image.Image:
    """The photo as RGB at full size, upright.

    Raises:
        ValueError: it cannot be decoded; names the file.
    """
    try:
        return decode(path.read_bytes())
    except ImageRejected as error:
        raise ValueError(f"{path}: {error}; take it out of the folder") from error


def random_crop(image: Image.Image, config: ViewConfig, rng: np.random.Generator) -> Image.Image:
    """A window of random area, aspect and place; never less than one pixel."""
    area = rng.uniform(config.min_area, 1.0)
    stretch = math.exp(0.5 * rng.uniform(-1, 1) * math.log(config.max_aspect_change))
    width = min(1.0, math.sqrt(area) * stretch) * image.width
    height = min(1.0, math.sqrt(area) / stretch) * image.height
    left, right = _pixels(rng.uniform(0, image.width - width), width, image.width)
    top, bottom = _pixels(rng.uniform(0, image.height - height), height, image.height)
    return image.crop((left, top, right, bottom))


def _pixels(start: float, length: float, whole: int) -> tuple[int, int]:
    """The nearest pixels; of a side of one pixel rounding would leave none."""
    first = min(round(start), whole - 1)
    return first, max(first + 1, round(start + length))


def random_distortions(image: Image.Image, count: int, rng: np.random.Generator) -> Image.Image:
    """``count`` different distortions of the kinds and strengths that training may see."""
    for kind in rng.choice(TRAIN_KINDS, size=count, replace=False):
        limits = DISTORTIONS[kind].train_range
        assert limits is not None
        image = distort(image, str(kind), float(rng.uniform(*limits)), rng)
    return image


def _single(
    path: Path, spec: PreprocessSpec, config: ViewConfig, rng: np.random.Generator
) -> np.ndarray:
    image = open_photo(path)
    if rng.random() >= config.whole:
        image = random_crop(image, config, rng)
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    count = int(rng.choice(len(config.distortions), p=config.distortions))
    return to_pixels(random_distortions(image, count, rng), spec)


def _mix(first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A blend (mixup, Zhang et al. 2018) or a spliced window (CutMix, Yun et al. 2019)."""
    share = rng.uniform(0.2, 0.8)
    if rng.random() < 0.5:
        blend = first.astype(np.float32) * share + second.astype(np.float32) * (1 - share)
        return np.asarray(blend + 0.5, dtype=np.uint8)
    height, width = (round(length * math.sqrt(share)) for length in first.shape[:2])
    top = int(rng.integers(0, first.shape[0] - height + 1))
    left = int(rng.integers(0, first.shape[1] - width + 1))
    spliced = first.copy()
    spliced[top : top + height, left : left + width] = second[:height, :width]
    return spliced


def training_view(
    photos: Sequence[Path], number: int, spec: PreprocessSpec, config: ViewConfig, seed: int
) -> np.ndarray:
    """View ``number`` of the endless sequence over ``photos``: uint8 ``[S, S, 3]``.

    Every photo has one view before any has two.
    """
    rng = np.random.default_rng((seed, number))
    view = _single(photos[number % len(photos)], spec, config, rng)
    if rng.random() < config.mixed:
        other = photos[int(rng.integers(len(photos)))]
        view = _mix(view, _single(other, spec, config, rng), rng)
    return view


def test_views(
    path: Path, number: int, spec: PreprocessSpec, seed: int
) -> list[tuple[str, np.ndarray]]:
    """The held-out views of one photo, each with the name of its set.

    ``clean``: the whole photo. ``seen``: one distortion of a kind and strength that training
    draws from. ``unseen_strength``: a trained kind beyond the trained range. ``unseen_kind``: a
    kind that training never draws.
    """
    rng = np.random.default_rng((seed, 1_000_003, number))
    image = open_photo(path)
    unseen = [kind for kind, entry in DISTORTIONS.items() if entry.train_range is None]
    kind = str(rng.choice(TRAIN_KINDS))
    stranger = str(rng.choice(unseen))

    def beyond(name: str) -> Image.Image:
        return distort(image, name, float(rng.choice(DISTORTIONS[name].test_levels)), rng)

    variants = [
        ("clean", image),
        ("seen", random_distortions(image, 1, rng)),
        ("unseen_strength", beyond(kind)),
        ("unseen_kind", beyond(stranger)),
    ]
    return [(name, to_pixels(variant, spec)) for name, variant in variants]
