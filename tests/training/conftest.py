"""Small photos with ratings that follow from what they show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nima_training.data.maxent import maximum_entropy


def _make_photo(seed: int, size: tuple[int, int] = (72, 64)) -> Image.Image:
    """Coloured blobs on a gradient; a different picture for each seed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : size[1], 0 : size[0]].astype(np.float32)
    image = np.zeros((size[1], size[0], 3), np.float32)
    image += rng.uniform(0, 160, 3) + x[..., None] * rng.uniform(-1, 1, 3)
    for _ in range(4):
        cx, cy, r = rng.uniform(0, size[0]), rng.uniform(0, size[1]), rng.uniform(5, 20)
        image[(x - cx) ** 2 + (y - cy) ** 2 < r * r] = rng.uniform(0, 255, 3)
    return Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))


def _make_set(folder: Path, count: int) -> tuple[Path, Path]:
    """``count`` photos in ``folder/photos`` and their ratings as ``folder/labels.csv``."""
    photos = folder / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    lines = ["image_id," + ",".join(f"r{r}" for r in range(1, 11))]
    rng = np.random.default_rng(7)
    for index in range(count):
        _make_photo(index).save(photos / f"photo{index:03d}.png")
        p = maximum_entropy(float(rng.uniform(3, 8)), 1.4)
        counts = np.round(p * 200).astype(int)
        lines.append(f"photo{index:03d}," + ",".join(map(str, counts)))
    labels = folder / "labels.csv"
    labels.write_text("\n".join(lines) + "\n")
    return photos, labels


@pytest.fixture(scope="session")
def make_photo() -> Callable[..., Image.Image]:
    """``make_photo(seed, (width, height))``: a small picture."""
    return _make_photo


@pytest.fixture(scope="session")
def make_set() -> Callable[[Path, int], tuple[Path, Path]]:
    """``make_set(folder, count)``: photos with ratings; returns their folder and the label file."""
    return _make_set
