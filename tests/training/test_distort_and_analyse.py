"""Distortions do what they say, and `nima analyse` measures what they do to scores."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter

from nima_training.analyse import analyse, change_text
from nima_training.cli.analyse import app as analyse_app
from nima_training.distort import DISTORTIONS, distort
from nima_training.metrics import mean_interval

MakePhoto = Callable[..., Image.Image]
BUNDLED = Path(__file__).resolve().parents[2] / "training/checkpoints/nima_mobilenet"


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
    for level in result["kinds"]["gaussian_blur"]["levels"]:
        assert level["change_low"] <= level["change"] <= level["change_high"]
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


def test_a_photo_whose_name_is_not_utf8(tmp_path: Path, make_photo: MakePhoto) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    make_photo(1, (160, 120)).save(path)
    analyse(score_by_sharpness, [path], tmp_path / "out", "a judge", ["gaussian_blur"])
    table = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    assert set(table["photo"]) == {r"caf\xe9.png"}


def test_the_change_has_an_interval_over_photos() -> None:
    changes = np.array([[-0.5, -0.4, -0.6, -0.5], [0.0, 0.0, 0.0, 0.0]])
    low, high = mean_interval(changes)
    assert -0.6 < low[0] < -0.5 < high[0] < -0.4
    assert (low[1], high[1]) == (0, 0)
    assert change_text({"change": -0.5, "change_low": -0.58, "change_high": -0.41}) == (
        "-0.50 [-0.58, -0.41]"
    )


def test_a_running_server_gives_what_the_checkpoint_gives(
    triton: Any, tmp_path: Path, make_photo: MakePhoto
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed in range(2):
        make_photo(seed, (160, 120)).save(photos / f"{seed}.png")
    kinds = ["--kind", "gaussian_blur", "--kind", "exposure"]
    for name, source in (
        ("served", ["--url", triton.grpc_url]),
        ("here", ["--checkpoint", str(BUNDLED)]),
    ):
        arguments = [str(photos), "--out", str(tmp_path / name), *kinds, *source]
        analyse_app(arguments, standalone_mode=False)
    served, here = (pd.read_parquet(tmp_path / n / "scores.parquet") for n in ("served", "here"))
    assert served[["photo", "kind", "strength"]].equals(here[["photo", "kind", "strength"]])
    assert len(served) == 2 * (1 + sum(len(DISTORTIONS[kind].levels) for kind in kinds[1::2]))
    np.testing.assert_allclose(served[["mean", "std"]], here[["mean", "std"]], atol=1e-3)
    assert "a running server" in (tmp_path / "served" / "analysis.html").read_text()


def test_where_no_server_answers(
    tmp_path: Path, make_photo: MakePhoto, capsys: pytest.CaptureFixture[str]
) -> None:
    make_photo(0).save(tmp_path / "0.png")
    with socket.socket() as taken:  # bound, not listening: nobody answers
        taken.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SystemExit) as stopped:
            analyse_app([str(tmp_path), "--out", str(tmp_path / "out"), "--url", url])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("nima analyse: ")
    assert url in error


def test_names_are_shown_as_they_are(
    tmp_path: Path,
    make_photo: MakePhoto,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    make_photo(1, (160, 120)).save(photos / "[a]:100:\x1b]b.png")
    (photos / "x\x1b]y.png").write_bytes(b"no photo")
    monkeypatch.setenv("FORCE_COLOR", "1")  # the status, as on a terminal
    arguments = [str(photos), "--out", str(tmp_path / "out"), "--checkpoint", str(BUNDLED)]
    analyse_app(arguments, standalone_mode=False)
    error = capsys.readouterr().err
    assert "[a]:100:\ufffd]b.png" in error
    assert "skipped x\ufffd]y.png" in error
    assert "\x1b]" not in error


def test_a_kind_named_twice_is_one(
    tmp_path: Path, make_set: Callable[[Path, int], tuple[Path, Path]]
) -> None:
    photos, _ = make_set(tmp_path, 2)
    paths = sorted(photos.iterdir())
    result = analyse(score_by_sharpness, paths, tmp_path / "out", "x", ["crop", "crop"])
    assert list(result["kinds"]) == ["crop"]


def test_analyse_refuses_an_output_that_is_a_file_before_it_scores(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OSError, match="out is not a folder"):
        analyse(score_by_sharpness, [], tmp_path / "out", "x")
    assert (tmp_path / "out").read_text() == "mine"


def test_analyse_refuses_unknown_kinds_and_empty_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown distortions"):
        analyse(score_by_sharpness, [], tmp_path, "x", ["sepia"])
    with pytest.raises(ValueError, match="none of the 0 photos"):
        analyse(score_by_sharpness, [], tmp_path, "x")
