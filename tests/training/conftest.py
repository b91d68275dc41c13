"""Small photos with ratings that follow from what they show."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nima_client.preprocess import PreprocessSpec
from nima_training.config import TrainConfig
from nima_training.data.dataset import Augmentation
from nima_training.data.manifest import build_manifest
from nima_training.data.maxent import maximum_entropy
from nima_training.data.sources import read_own

# A run of seconds: a small network, randomly initialised, on 64 x 64 pixels.
SMALL = {
    "backbone": "mobilenet_v3_small", "weights": "none", "dropout": 0.0, "workers": 0,
    "threads": 1, "cpu": True, "frozen_epochs": 0, "warmup": 0.0,
}  # fmt: skip


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


@pytest.fixture(scope="session")
def sixty_four(
    tmp_path_factory: pytest.TempPathFactory, make_set: Callable[[Path, int], tuple[Path, Path]]
) -> tuple[Path, Path]:
    """A manifest of 64 photos that are both training and validation split, and their folder."""
    folder = tmp_path_factory.mktemp("set")
    photos, labels = make_set(folder, 64)
    manifest = folder / "manifest.parquet"
    build_manifest(read_own(labels), photos, manifest)
    frame = pd.read_parquet(manifest)
    both = pd.concat([frame.assign(split="train"), frame.assign(split="val")])
    both.to_parquet(manifest, index=False)
    return manifest, photos


@pytest.fixture(scope="session")
def small_config(sixty_four: tuple[Path, Path]) -> Callable[..., TrainConfig]:
    """``small_config(out, **changes)``: the settings of a run of seconds on the 64 photos."""

    def make(out: Path, **changes: object) -> TrainConfig:
        values = {
            "manifest": sixty_four[0], "photos": sixty_four[1],
            "preprocessing": PreprocessSpec(resize_size=64, crop_size=64),
            "augmentation": Augmentation(resize=64, mirror=False),
            **SMALL, **changes,
        }  # fmt: skip
        return TrainConfig(out=out, **values)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def write_toml(sixty_four: tuple[Path, Path]) -> Callable[..., Path]:
    """``write_toml(file, out, **changes)``: the same as a file, for a process of its own."""

    def make(file: Path, out: Path, **changes: object) -> Path:
        values = {
            **SMALL, "manifest": str(sixty_four[0]), "photos": str(sixty_four[1]),
            "out": str(out), "name": "n", **changes,
        }  # fmt: skip
        lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
        lines += ["[preprocessing]", "resize_size = 64", "crop_size = 64"]
        lines += ["[augmentation]", "resize = 72"]
        file.write_text("\n".join(lines) + "\n")
        return file

    return make


@pytest.fixture(scope="session")
def one_thread() -> dict[str, str]:
    """Environment of a training process on the CPU."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
