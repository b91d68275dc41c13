"""JPEG decoded inside the DCT at a reduced scale, with either decoder, against the full decode."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from nima_build.repository import default_repository
from nima_client.preprocess import ImageRejected, PreprocessSpec, _decode, preprocess

SPEC = PreprocessSpec()
FULL = dataclasses.replace(SPEC, jpeg_oversampling=0)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "preprocessing.md"

# Pixels of 255; measured on the bench photos: docs/preprocessing.md has the table.
MEAN_TOLERANCE = 1.0
MAX_TOLERANCE = 16


def differences(a: np.ndarray, b: np.ndarray) -> tuple[float, int]:
    gap = np.abs(a.astype(np.int16) - b.astype(np.int16))
    return float(gap.mean()), int(gap.max())


def test_scale_is_chosen_by_the_short_side():
    def scale(width: int, height: int, spec: PreprocessSpec = SPEC) -> int:
        return _decode.reduced_scale(width, height, spec)

    side = int(SPEC.resize_size * SPEC.jpeg_oversampling)
    assert scale(side * 2 - 1, 9999) == 1
    assert scale(9999, side * 2) == 2
    assert scale(side * 4, side * 4) == 4
    assert scale(side * 8, side * 9) == 8
    assert scale(9999, 9999, FULL) == 1


@pytest.mark.parametrize("size", [(2000, 1500), (1797, 1801), (4003, 2999)])
def test_reduced_decode_stays_near_the_full_one(encode, size):
    data = encode("JPEG", size, quality=90)
    mean, largest = differences(preprocess(data, SPEC), preprocess(data, FULL))
    assert mean <= MEAN_TOLERANCE
    assert largest <= MAX_TOLERANCE


@pytest.mark.parametrize("size", [(640, 480), (1797, 1801), (4003, 2999), (3064, 2379)])
def test_pillow_and_simplejpeg_give_equal_pixels(encode, monkeypatch, size):
    if _decode.simplejpeg is None:
        pytest.skip("simplejpeg is not installed")
    data = encode("JPEG", size, quality=88)
    fast = preprocess(data, SPEC)
    monkeypatch.setattr(_decode, "simplejpeg", None)
    assert np.array_equal(fast, preprocess(data, SPEC))


def test_bench_photos_stay_near_the_full_decode_and_the_page_says_how_near(shared_photos):
    network = onnxruntime.InferenceSession(default_repository() / "nima_network/1/model.onnx")
    gaps, moved = [], []
    for path in sorted((shared_photos / "bench").iterdir()):
        data = path.read_bytes()
        pair = [preprocess(data, SPEC), preprocess(data, FULL)]
        gaps.append(differences(*pair))
        moved.append(abs(np.diff(network.run(["MEAN"], {"PIXELS": np.stack(pair)})[0][:, 0])[0]))
    assert max(mean for mean, _ in gaps) <= MEAN_TOLERANCE
    assert max(largest for _, largest in gaps) <= MAX_TOLERANCE
    (row,) = re.findall(r"^\| 2 \| (.+?) \| (.+?) \| (.+?) \| (.+?) \|", PAGE.read_text(), re.M)
    told = [float(cell) for cell in row]
    pixels = [np.mean([mean for mean, _ in gaps]), max(largest for _, largest in gaps)]
    assert told[:2] == pytest.approx(pixels, abs=0.1)
    assert told[2] == pytest.approx(np.mean(moved), abs=0.001)
    assert told[3] == pytest.approx(np.max(moved), abs=0.005)


def test_every_shared_photo_is_scored_or_refused_with_a_reason(shared_photos):
    verdicts = {}
    for path in [*(shared_photos / "edge").iterdir(), *(shared_photos / "bench").iterdir()]:
        try:
            verdicts[path.name] = preprocess(path.read_bytes(), SPEC).shape
        except ImageRejected as error:
            verdicts[path.name] = error.code
    assert all(v == (224, 224, 3) for v in verdicts.values()), verdicts


def test_both_decoders_agree_on_every_edge_file(shared_photos, monkeypatch):
    if _decode.simplejpeg is None:
        pytest.skip("simplejpeg is not installed")
    for path in sorted((shared_photos / "edge").iterdir()):
        data = path.read_bytes()
        with monkeypatch.context() as patch:
            fast = preprocess(data, SPEC)
            patch.setattr(_decode, "simplejpeg", None)
            assert np.array_equal(fast, preprocess(data, SPEC)), path.name
