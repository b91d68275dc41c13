"""Distortions do what they say, and `nima analyse` measures what they do to scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter

from nima_training.analyse import analyse
from nima_training.distort import DISTORTIONS, distort

MakePhoto = Callable[..., Image.Image]


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float64)


def sharpness(image: Image.Image) -> float:
    return float(np.abs(np.diff(pixels(image), axis=1)).mean())


@pytest.mark.parametrize("kind", sorted(DISTORTIONS))
def test_every_level_changes_the_photo_and_leaves_it_rgb(kind: str, make_photo: MakePhoto) -> None:
    image = make_photo(1, (120, 80))
    entry = DISTORTIONS[kind]
    results = [distort(image, kind, strength) for strength in (*entry.levels, *entry.test_levels)]
    for result in results:
        assert result.mode == "RGB"
        assert result.size != image.size or not np.array_equal(pixels(result), pixels(image))
    again = distort(image, kind, entry.levels[-1])
    assert np.array_equal(pixels(again), pixels(results[len(entry.levels) - 1]))


def test_test_levels_lie_outside_what_training_draws() -> None:
    for kind, entry in DISTORTIONS.items():
        if entry.train_range is not None:
            low, high = entry.train_range
            assert all(not low <= level <= high for level in entry.test_levels), kind
    assert any(entry.train_range is None for entry in DISTORTIONS.values())


@pytest.mark.parametrize("kind", ["gaussian_blur", "motion_blur"])
def test_blur_grows_with_strength(kind: str, make_photo: MakePhoto) -> None:
    image = make_photo(2, (160, 120))
    values = [sharpness(image)] + [
        sharpness(distort(image, kind, strength, np.random.default_rng(0)))
        for strength in DISTORTIONS[kind].levels
    ]
    assert values == sorted(values, reverse=True)


def test_gaussian_blur_is_relative_to_the_short_side(make_photo: MakePhoto) -> None:
    image = make_photo(3, (200, 100))
    expected = image.filter(ImageFilter.GaussianBlur(2.0))
    assert np.array_equal(pixels(distort(image, "gaussian_blur", 2.0)), pixels(expected))


def test_noise_has_the_stated_sigma() -> None:
    grey = Image.new("RGB", (200, 200), (128, 128, 128))
    noisy = pixels(distort(grey, "noise", 20.0))
    assert noisy.std() == pytest.approx(20, rel=0.03)
    assert noisy.mean() == pytest.approx(128, abs=0.5)


def test_tone_and_colour_by_hand() -> None:
    grey = Image.new("RGB", (8, 8), (100, 100, 100))
    # One stop up doubles linear light: 100 * 2^(1/2.2).
    assert pixels(distort(grey, "exposure", 1.0))[0, 0, 0] == round(100 * 2 ** (1 / 2.2))
    assert pixels(distort(grey, "exposure", 0.0))[0, 0, 0] == 100
    assert pixels(distort(grey, "colour_cast", 0.2))[0, 0].tolist() == [120, 100, 80]
    red = Image.new("RGB", (8, 8), (200, 20, 20))
    assert np.ptp(pixels(distort(red, "saturation", -1.0))[0, 0]) == 0
    half = Image.fromarray(np.repeat(np.array([[[50], [150]]], np.uint8), 3, axis=2))
    assert pixels(distort(half, "contrast", -1.0))[0, :, 0].tolist() == [75, 125]


def test_crops_keep_the_stated_part(make_photo: MakePhoto) -> None:
    image = make_photo(4, (200, 100))
    assert distort(image, "crop", 0.4).size == (120, 60)
    corners = {
        distort(image, "off_centre", 1.0, np.random.default_rng(s)).tobytes() for s in range(20)
    }
    expected = {image.crop((x, y, x + 120, y + 60)).tobytes() for x in (0, 80) for y in (0, 40)}
    assert corners == expected


def test_rotation_shows_no_border() -> None:
    white = Image.new("RGB", (150, 100), (255, 255, 255))
    for degrees in (-45.0, 3.0, 20.0):
        assert pixels(distort(white, "rotation", degrees))[2:-2, 2:-2].min() > 250


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="unknown distortion 'sepia'"):
        distort(Image.new("RGB", (4, 4)), "sepia", 1.0)


def score_by_sharpness(images: Sequence[Image.Image]) -> np.ndarray:
    """A judge that likes sharp photos; two neighbouring ratings carry the mean."""
    means = np.clip([2 + sharpness(image) for image in images], 1, 9.99)
    result = np.zeros((len(images), 10))
    low = np.floor(means).astype(int)
    result[np.arange(len(images)), low - 1] = low + 1 - means
    result[np.arange(len(images)), low] = means - low
    return result


def test_analyse_finds_what_a_judge_likes(tmp_path: Path, make_photo: MakePhoto) -> None:
    paths = []
    for seed in range(6):
        paths.append(tmp_path / f"{seed}.png")
        make_photo(seed, (160, 120)).save(paths[-1])
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"nothing")
    kinds = ["gaussian_blur", "noise", "saturation"]
    result = analyse(score_by_sharpness, [*paths, bad], tmp_path / "out", "a judge", kinds)
    assert result["photos"] == 6
    assert list(result["unreadable"]) == ["bad.png"]
    assert result["kinds"]["gaussian_blur"]["falls"] == 1
    assert result["kinds"]["gaussian_blur"]["falls_at_strongest"] == 1
    assert result["kinds"]["noise"]["falls"] == 0  # grain looks sharp to this judge
    assert "falls" not in result["kinds"]["saturation"]
    table = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    levels = sum(len(DISTORTIONS[kind].levels) for kind in kinds)
    assert len(table) == 6 * (1 + levels)
    assert json.loads((tmp_path / "out" / "analysis.json").read_text()) == result
    page = (tmp_path / "out" / "analysis.html").read_text()
    assert page.count("<svg") == 2 * len(kinds)
    assert "Clear against blurry" in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", "")


def test_analyse_refuses_unknown_kinds_and_empty_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown distortions"):
        analyse(score_by_sharpness, [], tmp_path, "x", ["sepia"])
    with pytest.raises(ValueError, match="none of the 0 photos"):
        analyse(score_by_sharpness, [], tmp_path, "x")
