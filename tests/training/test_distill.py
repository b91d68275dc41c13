"""Distillation: views, pool, stages and the whole recipe on a handful of photos."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

from nima_client.preprocess import PreprocessSpec
from nima_training.checkpoint import load_checkpoint
from nima_training.cli.distill import app as distill_app
from nima_training.distill.agreement import (
    HeldOut,
    agreement,
    agreement_line,
    measure_once,
)
from nima_training.distill.config import DistillConfig, StageConfig, ViewConfig
from nima_training.distill.photos import split_photos
from nima_training.distill.pool import build_pool
from nima_training.distill.recipe import distill
from nima_training.distill.stages import Stage, learning_rate_factor, train_stage
from nima_training.distill.teacher import TFLiteTeacher
from nima_training.distill.views import random_crop, training_view
from nima_training.distill.views import test_views as held_out_views
from nima_training.losses import DistillationLoss
from nima_training.mobilenet_v1 import MobileNetV1, multiply_adds
from nima_training.split import difference_hash, group_near_duplicates, split_by_group, unit_hash

MakePhoto = Callable[..., Image.Image]
SPEC = PreprocessSpec(resize_size=64, crop_size=64)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, make_photo: MakePhoto) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(40):
        make_photo(seed, (96, 80)).save(folder / f"{seed:03d}.png")
    return sorted(folder.iterdir())


def test_views_follow_from_their_number(photos: list[Path]) -> None:
    config = ViewConfig()
    views = [training_view(photos, n, SPEC, config, 1) for n in range(60)]
    assert all(view.shape == (64, 64, 3) and view.dtype == np.uint8 for view in views)
    assert np.array_equal(views[17], training_view(photos, 17, SPEC, config, 1))
    assert not np.array_equal(views[17], training_view(photos, 17, SPEC, config, 2))
    assert not np.array_equal(views[3], views[43])  # the same photo, another view
    sets = [name for name, _ in held_out_views(photos[0], 0, SPEC, 1)]
    assert sets == ["clean", "seen", "unseen_strength", "unseen_kind"]


@pytest.mark.parametrize("size", [(1, 1), (1, 60), (60, 1), (2, 2)])
def test_a_crop_of_a_photo_of_few_pixels_has_pixels(size: tuple[int, int]) -> None:
    rng, image = np.random.default_rng(0), Image.new("RGB", size)
    crops = [random_crop(image, ViewConfig(), rng) for _ in range(2000)]
    assert all(0 < c.width <= size[0] and 0 < c.height <= size[1] for c in crops)


def test_a_photo_that_cannot_be_read_is_named(photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(photos[0].read_bytes()[:100])
    with pytest.raises(ValueError, match=r"broken\.jpg"):
        split_photos(tmp_path, 1)


def test_photos_that_are_too_few_for_three_parts_are_refused(
    photos: list[Path], shared_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "few"
    folder.mkdir()
    for path in photos[:2]:
        shutil.copy(path, folder)
    teacher = shared_dir / "models" / "nima_mobilenet_aesthetic_int8.tflite"
    with pytest.raises(ValueError, match=r"no photo for test: .* needs more photos"):
        distill(
            DistillConfig(folder, teacher, tmp_path / "work", tmp_path / "out", views=64),
            Console(quiet=True),
        )
    assert not (tmp_path / "work").exists()


def test_split_keeps_look_alikes_together(make_photo: MakePhoto) -> None:
    images = [make_photo(seed, (96, 80)) for seed in range(30)]
    images += [image.resize((192, 160)) for image in images]
    hashes = [difference_hash(image) for image in images]
    groups = group_near_duplicates(hashes)
    assert groups[30:] == groups[:30]
    names = [f"{i}.jpg" for i in range(60)]
    parts = split_by_group(names, groups, {"a": 0.5, "b": 0.5})
    assert parts[30:] == parts[:30]
    assert parts.count("a") == parts.count("b")


def test_adding_photos_moves_none_from_200_groups_on() -> None:
    names = [f"{i}.jpg" for i in range(201)]
    shares = {"a": 0.5, "b": 0.5}
    parts = split_by_group(names[:200], list(range(200)), shares)
    # By the hash of the name alone, as ever since.
    assert parts == ["a" if unit_hash(name, 0) < 0.5 else "b" for name in names[:200]]
    assert parts.count("a") != 100
    assert split_by_group(names, list(range(201)), shares)[:200] == parts


def test_few_groups_are_cut_at_the_shares() -> None:
    shares = {"train": 0.8, "val": 0.1, "test": 0.1}
    for count, expected in (
        (25, [20, 3, 2]), (199, [159, 20, 20]), (5, [3, 1, 1]), (3, [1, 1, 1]), (2, [1, 1, 0]),
        (1, [1, 0, 0]),
    ):  # fmt: skip
        names = [f"scene{i // 4}" for i in range(4 * count)]
        groups = [i - i % 4 for i in range(4 * count)]
        seen = set()
        for seed in range(4):
            parts = split_by_group(names, groups, shares, seed)
            assert [parts.count(part) for part in shares] == [4 * n for n in expected]
            assert all(len(set(parts[i : i + 4])) == 1 for i in groups)
            seen.add(tuple(parts))
        assert len(seen) > 1 or count < 3  # the seed chooses which
    assert "c" not in split_by_group(names * 9, list(range(9)), {"a": 0.9, "b": 0.1, "c": 0})


def test_learning_rate_warms_up_and_falls() -> None:
    factors = [learning_rate_factor(x) for x in np.linspace(0, 1, 101)]
    assert factors[0] < 0.1
    assert max(factors) == pytest.approx(1, abs=1e-2)
    assert factors[-1] == pytest.approx(0, abs=1e-6)
    assert factors[10:] == sorted(factors[10:], reverse=True)


class Toy:
    """A small stage over random features; ``fail_at`` stops it in the middle like a kill."""

    def __init__(self, fail_at: int | None = None) -> None:
        torch.manual_seed(1)
        self.network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 10))
        generator = torch.Generator().manual_seed(2)
        self.x = torch.randn(64, 8, generator=generator)
        self.y = torch.softmax(torch.randn(64, 10, generator=generator), 1)
        self.calls, self.fail_at = 0, fail_at

    def loss(self, rows: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        noise = torch.from_numpy(rng.normal(0, 0.1, (len(rows), 8)).astype(np.float32))
        logits = self.network(self.x[rows] + noise)
        value: torch.Tensor = DistillationLoss()(logits, self.y[rows])
        return value

    def run(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
        monkeypatch.setattr("nima_training.distill.stages.SAVE_EVERY_SECONDS", -1.0)
        stage = Stage(
            "toy", self.network, self.loss, len(self.x),
            lambda state: (float(state["2.weight"].square().sum()), "x"),
            StageConfig(5, 1e-2, batch_size=16),
        )  # fmt: skip
        return train_stage(stage, file, 0.0, 0.9, 0, Console(quiet=True))


def test_a_stage_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Toy().run(tmp_path / "a.pt", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        Toy(fail_at=9).run(tmp_path / "b.pt", monkeypatch)
    resumed = Toy()
    result = resumed.run(tmp_path / "b.pt", monkeypatch)
    assert 0 < resumed.calls < 20
    assert all(torch.equal(whole[name], result[name]) for name in whole)
    finished = Toy()
    finished.run(tmp_path / "b.pt", monkeypatch)
    assert finished.calls == 0


def test_a_loss_that_is_no_number_ends_the_stage_with_an_error_to_print(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = Toy()
    toy.x[5] = torch.nan
    with pytest.raises(ValueError, match=r"stage toy, step \d: the loss is nan on the views \["):
        toy.run(tmp_path / "a.pt", monkeypatch)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--small-epochs", "-1"), ("--full-epochs", "nan"), ("--small-minutes", "0"),
        ("--full-minutes", "-3"), ("--full-minutes", "nan"),
    ],
)  # fmt: skip
def test_limits_that_would_leave_the_student_untrained_are_refused(
    tmp_path: Path, option: str, value: str
) -> None:
    arguments = [str(tmp_path)]
    for name in ("--teacher", "--out", "--work-dir"):
        arguments += [name, str(tmp_path / "none")]
    result = CliRunner().invoke(distill_app, [*arguments, option, value])
    assert result.exit_code == 2
    assert "Invalid value" in result.output


def test_a_stage_without_training_is_refused() -> None:
    for minutes in (0.0, -3.0, math.nan):
        with pytest.raises(ValueError, match="give more than 0"):
            StageConfig(1, max_minutes=minutes)
    for epochs in (-1.0, math.nan):
        with pytest.raises(ValueError, match="give 0"):
            StageConfig(epochs)


def test_the_whole_recipe_resumes_and_writes_a_checkpoint(
    photos: list[Path], shared_dir: Path, tmp_path: Path
) -> None:
    config = DistillConfig(
        photos[0].parent,
        shared_dir / "models" / "nima_mobilenet_aesthetic_int8.tflite",
        tmp_path / "work",
        tmp_path / "out",
        name="tiny",
        budget=520e6,
        prune_views=16,
        views=32,
        small_stage=StageConfig(0.5, batch_size=8, size=96),
        full_stage=StageConfig(0.25, batch_size=8, frozen_parts=9),
        workers=1,
    )
    metrics = distill(config, Console(quiet=True))
    loaded = load_checkpoint(tmp_path / "out")
    assert loaded.meta["metrics"]["held_out"] == metrics
    assert set(metrics) == {"clean", "seen", "unseen_strength", "unseen_kind", "all"}
    assert len(loaded.meta["reference"]["quantiles"]) == 101
    assert str(tmp_path) not in (tmp_path / "out/checkpoint.json").read_text()
    hash_before = loaded.meta["weights_sha256"]
    assert distill(config, Console(quiet=True)) == metrics  # nothing left to do
    assert load_checkpoint(tmp_path / "out").meta["weights_sha256"] == hash_before
    for changes, differs in (
        ({"budget": 500e6}, "budget"),
        ({"full_stage": replace(config.full_stage, epochs=1.0)}, "full_stage"),
        ({"teacher": config.teacher.with_name("nima_mobilenet_technical_int8.tflite")}, "teacher"),
        ({"seed": 21}, "photos, seed"),
    ):
        with pytest.raises(ValueError, match=rf"other settings \({differs}\): choose another"):
            distill(replace(config, **changes), Console(quiet=True))  # type: ignore[arg-type]
    (tmp_path / "work/plan.json").unlink()
    with pytest.raises(ValueError, match=r"without a plan\.json: choose another"):
        distill(config, Console(quiet=True))
    with pytest.raises(ValueError, match="other settings"):
        build_pool(
            tmp_path / "work/pool-train", photos[:5], 32, PreprocessSpec(),
            replace(config.view, mixed=0.5), config.seed, 1,
        )  # fmt: skip


def test_a_held_out_set_of_one_view_has_no_correlation() -> None:
    one = torch.full((1, 10), 0.1)
    values = agreement(one, one)
    assert (values["views"], values["spearman_mean"], values["mae_mean"]) == (1, None, 0)
    assert agreement_line("held-out clean", values) == (
        "held-out clean, 1 views: Spearman undefined, MAE 0.0000, EMD r=2 0.0000, r=1 0.0000"
    )


def test_a_distillation_of_thirteen_photos_ends_well(
    photos: list[Path], shared_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "few"
    folder.mkdir()
    for path in photos[:13]:
        shutil.copy(path, folder)
    parts = {"train": photos[:11], "selection": photos[11:12], "test": photos[12:13]}
    monkeypatch.setattr("nima_training.distill.recipe.split_photos", lambda *_: parts)
    teacher = shared_dir / "models" / "nima_mobilenet_aesthetic_int8.tflite"
    tiny = StageConfig(0.5, batch_size=8, size=96, frozen_parts=9)
    config = DistillConfig(
        folder, teacher, tmp_path / "work", tmp_path / "out", budget=520e6, prune_views=16,
        views=16, small_stage=tiny, full_stage=replace(tiny, epochs=0), workers=1,
    )  # fmt: skip
    metrics = distill(config, Console(quiet=True))
    assert metrics["clean"]["views"] == 1
    assert metrics["clean"]["spearman_mean"] is None
    assert load_checkpoint(tmp_path / "out").meta["metrics"]["held_out"] == metrics


def test_views_measured_by_the_batch_give_the_same_figures(photos: list[Path]) -> None:
    torch.manual_seed(5)
    model = MobileNetV1(widths=[8] * 14).eval()
    generator = torch.Generator().manual_seed(6)

    class Teacher:
        """Answers by what it is shown; ``most`` is the largest number of views at once."""

        most = 0
        head = torch.randn(3, 10, generator=generator)

        def __call__(self, pixels: np.ndarray) -> np.ndarray:
            self.most = max(self.most, len(pixels))
            colour = torch.from_numpy(pixels.mean((1, 2)) / 64).float()
            return np.asarray(torch.softmax(colour @ self.head, 1).numpy())

    teacher = Teacher()
    arguments = photos[:11], cast(TFLiteTeacher, teacher), SPEC, 3
    by_batch = measure_once(model, *arguments)
    assert teacher.most == 32
    assert by_batch["all"]["views"] == 44
    assert by_batch == HeldOut(*arguments).measure(model)


def test_bundled_checkpoint_is_whole_and_near_its_teacher() -> None:
    folder = Path(__file__).resolve().parents[2] / "training/checkpoints/nima_mobilenet"
    loaded = load_checkpoint(folder)
    assert loaded.meta["backbone"] == "mobilenet_v1"
    assert loaded.spec == PreprocessSpec()
    assert multiply_adds(loaded.meta["widths"]) <= loaded.meta["training"]["budget"]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 12_000_000
    held_out = loaded.meta["metrics"]["held_out"]
    assert held_out["all"]["views"] > 900
    assert held_out["all"]["spearman_mean"] >= 0.95
    assert held_out["all"]["mae_mean"] <= 0.10
