"""Training views: what an augmentation keeps of the preprocessing that the server will use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nima_client.preprocess import PreprocessSpec
from nima_training.data.dataset import Augmentation, Photos
from nima_training.data.sources import PROBABILITIES

WHOLE = Augmentation(resize=64, mirror=False)


def view(path: Path, spec: PreprocessSpec, augmentation: Augmentation | None) -> np.ndarray:
    frame = pd.DataFrame({"image_id": [path.stem], "path": [path.name]})
    frame[PROBABILITIES] = 0.1
    sample = Photos(frame, path.parent, spec, augmentation)[0]
    pixels: np.ndarray = sample["pixels"].numpy().astype(np.int16)
    assert pixels.shape == (3, spec.crop_size, spec.crop_size)
    return pixels


@pytest.mark.parametrize("size", [(256, 64), (64, 256)])
@pytest.mark.parametrize("resize", ["stretch", "shortest"])
def test_a_view_keeps_the_aspect_ratio_where_serving_does(
    tmp_path: Path, resize: str, size: tuple[int, int]
) -> None:
    # A ramp along the long side: how much of it a view spans says how it was resized.
    ramp = np.linspace(0, 255, 256).astype(np.uint8)
    rows = np.tile(ramp, (64, 1)) if size[0] > size[1] else np.tile(ramp[:, None], (1, 64))
    Image.fromarray(np.stack([rows] * 3, axis=2)).save(tmp_path / "ramp.png")
    spec = PreprocessSpec(resize=resize, resize_size=64, crop_size=64)  # type: ignore[arg-type]
    served, seen = (np.ptp(view(tmp_path / "ramp.png", spec, a)) for a in (None, WHOLE))
    assert served == pytest.approx(64 if resize == "shortest" else 255, abs=4)
    assert seen == pytest.approx(served, abs=4)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_view_is_resized_with_the_filter_of_serving(tmp_path: Path, interpolation: str) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (150, 130, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    spec = PreprocessSpec(resize_size=64, crop_size=64, interpolation=interpolation)  # type: ignore[arg-type]
    difference = view(tmp_path / "noise.png", spec, None) - view(
        tmp_path / "noise.png", spec, WHOLE
    )
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("augmentation", [None, WHOLE])
def test_a_line_of_pixels_is_refused_in_training_as_in_serving(
    tmp_path: Path, augmentation: Augmentation | None
) -> None:
    Image.new("RGB", (60_000, 2)).save(tmp_path / "line.png")
    frame = pd.DataFrame({"image_id": ["line"], "path": ["line.png"]})
    frame[PROBABILITIES] = 0.1
    spec = PreprocessSpec(resize="shortest", resize_size=64, crop_size=64)
    sample = Photos(frame, tmp_path, spec, augmentation)[0]
    assert sample["error"].startswith("line.png: TOO_LARGE: 60000x2 pixels")
