"""The training loop, run for real on small photos with randomly initialised networks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from nima_client.preprocess import PreprocessSpec
from nima_training.checkpoint import load_checkpoint
from nima_training.config import ConfigError, TrainConfig, load_config
from nima_training.data.dataset import Augmentation, EpochBatches, read_manifest
from nima_training.data.sources import PROBABILITIES, LabelError
from nima_training.demo import CHECKPOINT as BUNDLED
from nima_training.loop import Trainer, TrainingError, train
from nima_training.metrics import RATINGS

SmallConfig = Callable[..., TrainConfig]
WriteToml = Callable[..., Path]


def quiet() -> Console:
    return Console(quiet=True)


def test_sixty_four_photos_overfit(small_config: SmallConfig, tmp_path: Path) -> None:
    train(
        small_config(tmp_path / "run", backbone="mobilenet_v2", epochs=60, batch_size=16,
            backbone_lr=2e-3, head_lr=2e-3, weight_decay=0.0, patience=0,
            preprocessing=PreprocessSpec(resize_size=48, crop_size=48),
            augmentation=Augmentation(resize=48, mirror=False),
        ),
        quiet(),
    )  # fmt: skip
    history = [
        json.loads(line) for line in (tmp_path / "run/history.jsonl").read_text().splitlines()
    ]
    assert history[0]["emd_r2"] > 0.05
    best = load_checkpoint(tmp_path / "run/best").meta["metrics"]["validation"]
    assert best["emd_r2"]["value"] < 0.02
    assert best["spearman_mean"]["value"] > 0.97


def command(file: Path) -> list[str]:
    return [sys.executable, "-m", "nima_training.cli.train", "--config", str(file)]


def test_resume_after_sigkill_gives_the_same_weights(
    write_toml: WriteToml, one_thread: dict[str, str], tmp_path: Path
) -> None:
    changes = {
        "epochs": 5, "frozen_epochs": 1, "batch_size": 8, "dropout": 0.3, "ema_decay": 0.9,
        "accumulate": 2, "save_seconds": 0.0, "patience": 0,
    }  # fmt: skip
    outs = [tmp_path / "whole", tmp_path / "killed"]
    files = [
        write_toml(tmp_path / f"{out.name}.toml", out, **{**changes, "name": "n"}) for out in outs
    ]
    train(load_config(files[0], {}), quiet())
    state = outs[1] / "state.pt"
    kills = 0
    for wanted in (3, 11):  # in the middle of two epochs
        process = subprocess.Popen(command(files[1]), env=one_thread, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline and process.poll() is None:
            if state.exists() and torch.load(state, weights_only=True)["at"]["update"] >= wanted:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.02)
        process.wait(timeout=30)
    assert kills == 2
    at = torch.load(state, weights_only=True)["at"]
    assert not at["done"]
    subprocess.run(command(files[1]), check=True, env=one_thread, capture_output=True, timeout=200)
    whole, killed = (load_file(out / "last/model.safetensors") for out in outs)
    assert whole.keys() == killed.keys()
    for name in whole:
        assert torch.equal(whole[name], killed[name]), name


def test_the_bundled_network_is_trained_further(
    small_config: SmallConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is pruned; its head goes on too; and a run that goes on needs it no more."""
    bundled = tmp_path / "bundled"
    shutil.copytree(BUNDLED, bundled)
    config = small_config(
        tmp_path / "run", backbone="mobilenet_v1", weights=str(bundled), epochs=2, patience=0,
        head_lr=1e-9, backbone_lr=0.0, norm_statistics="frozen", weight_decay=0.0, batch_size=16,
    )  # fmt: skip

    class Killed(Exception):
        pass

    def killed(*_: object) -> None:
        raise Killed  # in the first epoch, with a state on the disk

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_checkpoint", killed)
        with pytest.raises(Killed):
            train(replace(config, save_seconds=0.0), quiet())
    shutil.rmtree(bundled)
    train(config, quiet())
    before, after = load_checkpoint(BUNDLED), load_checkpoint(config.out / "last")
    assert after.meta["widths"] == before.meta["widths"]
    own = after.model.state_dict()
    for name, value in before.model.state_dict().items():
        assert torch.allclose(own[name], value, atol=1e-6), name


def test_a_corrupt_file_is_reported_not_fatal(
    small_config: SmallConfig, sixty_four: tuple[Path, Path], tmp_path: Path
) -> None:
    import shutil

    photos = tmp_path / "photos"
    shutil.copytree(sixty_four[1], photos)
    (photos / "photo010.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    console = Console(record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    trainer = Trainer(
        small_config(tmp_path / "run", photos=photos, epochs=2, batch_size=16), console
    )
    trainer.run()
    assert len(trainer.skipped) == 1
    assert console.export_text().count("photo010.png") == 2  # once for each split it is in
    meta = load_checkpoint(tmp_path / "run/last").meta
    assert meta["metrics"]["skipped_files"] == 1
    assert meta["metrics"]["skipped_validation_files"] == 1
    assert "63 photos" in meta["reference"]["set"]


def test_a_nan_label_is_refused_with_its_row(
    small_config: SmallConfig, sixty_four: tuple[Path, Path], tmp_path: Path
) -> None:
    frame = pd.read_parquet(sixty_four[0])
    frame.loc[5, "p4"] = np.nan
    bad = tmp_path / "bad.parquet"
    frame.to_parquet(bad)
    with pytest.raises(LabelError, match=r"row 5 \(image photo005\)"):
        read_manifest(bad)
    with pytest.raises(LabelError, match="row 5"):
        train(small_config(tmp_path / "run", manifest=bad), quiet())


def test_a_manifest_filtered_by_hand_is_read_by_position(
    sixty_four: tuple[Path, Path], tmp_path: Path
) -> None:
    frame = pd.read_parquet(sixty_four[0])[10:]  # pandas keeps the old numbers as its index
    frame.to_parquet(filtered := tmp_path / "filtered.parquet")
    assert read_manifest(filtered)["image_id"][0] == "photo010"
    frame.assign(path=[None, *frame["path"][1:]]).to_parquet(lost := tmp_path / "lost.parquet")
    with pytest.raises(LabelError, match="row 0: no path of a photo"):
        read_manifest(lost)
    frame.iloc[2, frame.columns.get_loc("p4")] = np.nan
    frame.to_parquet(filtered)
    with pytest.raises(LabelError, match=r"row 2 \(image photo012\)"):
        read_manifest(filtered)


def test_ratings_of_three_digits_have_the_means_they_had(
    sixty_four: tuple[Path, Path], tmp_path: Path
) -> None:
    frame = pd.read_parquet(sixty_four[0])
    frame[PROBABILITIES] = frame[PROBABILITIES].round(3)
    frame.to_parquet(rounded := tmp_path / "rounded.parquet")
    values = read_manifest(rounded)[PROBABILITIES].to_numpy()
    assert np.abs(values.sum(axis=1) - 1).max() < 1e-12
    true = read_manifest(sixty_four[0])[PROBABILITIES].to_numpy()
    assert np.abs(values @ RATINGS - true @ RATINGS).max() < 3e-3


def test_a_loss_that_is_not_finite_names_the_images(
    small_config: SmallConfig, tmp_path: Path
) -> None:
    trainer = Trainer(small_config(tmp_path / "run", batch_size=16), quiet())
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"16 images: photo\d{3}, photo"):
        trainer.run()


def test_frozen_stage_moves_only_the_head(small_config: SmallConfig, tmp_path: Path) -> None:
    trainer = Trainer(
        small_config(tmp_path / "run", epochs=1, frozen_epochs=1, batch_size=16), quiet()
    )
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.run()
    changed = {n for n, v in trainer.model.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {"classifier.3.1.weight", "classifier.3.1.bias"}


def test_early_stopping_and_another_configuration(
    small_config: SmallConfig, tmp_path: Path
) -> None:
    settings = {"epochs": 9, "batch_size": 32, "patience": 1, "head_lr": 1e-9, "backbone_lr": 0.0}
    out = tmp_path / "run"
    train(small_config(out, norm_statistics="frozen", **settings), quiet())
    assert len((out / "history.jsonl").read_text().splitlines()) < 9
    with pytest.raises(TrainingError, match=r"other settings \(head_lr, norm_statistics\)"):
        train(small_config(out, **{**settings, "head_lr": 1e-3}), quiet())


def test_ranks_and_resume_share_one_order() -> None:
    whole = [row for batch in EpochBatches(50, 8, 1, 3, 0, 1) for row in batch]
    split = [list(EpochBatches(50, 4, 1, 3, rank, 2)) for rank in (0, 1)]
    assert whole == [row for pair in zip(*split, strict=True) for batch in pair for row in batch]
    assert (
        list(EpochBatches(50, 8, 1, 3, 0, 1, start=2)) == list(EpochBatches(50, 8, 1, 3, 0, 1))[2:]
    )
    assert len(set(whole)) == 48


def test_configuration_is_validated(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    paths = 'manifest = "m"\nphotos = "p"\nout = "o"\n'
    file.write_text(paths + "epochs = 3\nbackbone_lr = 1\n[preprocessing]\ncrop_size = 200\n")
    loaded = load_config(file, {"epochs": 4, "backbone": None})
    assert (loaded.epochs, loaded.backbone_lr, loaded.preprocessing.crop_size) == (4, 1.0, 200)
    for line, message in (
        ("epochz = 3", "unknown fields"),
        ('epochs = "3"', "must be of type int"),
        ("dropout = 1.5", r"dropout = 1.5: must be in \[0, 1\)"),
        ('backbone = "vgg19"', "backbone = 'vgg19': must be one of"),
        ("epochs = ", "c.toml"),
    ):
        file.write_text(paths + line + "\n")
        with pytest.raises(ConfigError, match=message):
            load_config(file, {})
    with pytest.raises(ConfigError, match="missing: manifest, out, photos"):
        load_config(None, {})


def test_manifest_probabilities_are_complete(sixty_four: tuple[Path, Path]) -> None:
    frame = read_manifest(sixty_four[0])
    np.testing.assert_allclose(frame[PROBABILITIES].sum(axis=1), 1, atol=1e-9)
