"""What a configuration file and ``--set`` may say, and what is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nima_client.preprocess import PreprocessSpec
from nima_training.cli.train import app as train_app
from nima_training.config import ConfigError, TrainConfig, load_config, parse_assignments
from nima_training.data.dataset import Augmentation
from nima_training.models import BACKBONES

PATHS = {"manifest": Path("m"), "photos": Path("p"), "out": Path("o")}


def loaded(*assignments: str, file: Path | None = None) -> TrainConfig:
    """The configuration of ``--set`` flags."""
    return load_config(file, {**PATHS, **parse_assignments(list(assignments))})


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("clip_norm=-1.0", "clip_norm = -1.0: must be not negative; 0 switches the clipping off"),
        ("weight_decay=-1", "weight_decay = -1.0: must be not negative"),
        ("seed=-1", "seed = -1: must be in 0"),
        (f"seed={2**64}", "must be in 0"),
        ("threads=-1", "threads = -1: must be not negative"),
        ("save_seconds=nan", "save_seconds = nan: must be finite"),
        ("save_seconds=-1", "save_seconds = -1.0: must be not negative"),
        ("emd_r=inf", "emd_r = inf: must be finite"),
        ("head_lr=inf", "head_lr = inf: must be finite"),
        (f"head_lr=1{'0' * 400}", "head_lr = 1000.*too large"),
        ("epochs=true", "epochs = True: must be of type int"),
        ("head_lr=true", "head_lr = True: must be of type float"),
        ("cpu=1", "cpu = 1: must be true or false"),
        ("schedule=3", "schedule = 3: must be of type str"),
        ("augmentation=foo", "augmentation = 'foo': must be a table"),
        ("preprocessing=foo", "preprocessing = 'foo': must be a table"),
        ('augmentation={resize="80"}', "resize must be of type int"),
        ("augmentation={resize=true}", "resize must be of type int"),
        ("augmentation={resize=0}", "resize must be a whole number of pixels, not 0"),
        ("augmentation.mirror=1", "mirror must be true or false"),
        ("augmentation.rotate=5", r"unknown fields \['rotate'\]; known: resize, mirror"),
        ("preprocessing={crop_size=200.5}", "crop_size must be of type int"),
        ("preprocessing={mean=5}", "mean must be a list of numbers"),
        ("preprocessing={mean=[0.5, true, 0.5]}", "mean must be of type float"),
        ("preprocessing={mean=[0.5, nan, 0.5]}", "must be finite numbers"),
        ("epochs", "write it as name=value"),
        ("=3", "write it as name=value"),
    ],
)
def test_values_that_no_run_can_have(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loaded(assignment)


def test_a_file_of_windows_editors(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(b"\xef\xbb\xbfepochs = 3\r\nname = 'n'\r\n")
    assert loaded(file=file).epochs == 3


def test_an_augmentation_is_checked_where_it_is_made() -> None:
    wrong: Any
    for wrong in ({"resize": "80"}, {"resize": True}, {"resize": -1}, {"mirror": 1}):
        with pytest.raises(ValueError, match="must be"):
            Augmentation(**wrong)


def test_a_key_of_a_table_leaves_the_others(tmp_path: Path) -> None:
    set_twice = ("augmentation.resize=300", "augmentation.mirror=false")
    assert loaded(*set_twice).augmentation == Augmentation(300, False)
    file = tmp_path / "c.toml"
    file.write_text('[preprocessing]\nresize_size = 300\nresize = "shortest"\n')
    spec = loaded("preprocessing.crop_size=200", file=file).preprocessing
    assert (spec.resize_size, spec.crop_size, spec.resize) == (300, 200, "shortest")
    # Text that is no TOML has a place in a table, too.
    spec = loaded("preprocessing.resize=stretch", file=file).preprocessing
    assert (spec.resize_size, spec.resize) == (300, "stretch")
    assert isinstance(spec, PreprocessSpec)


def test_the_head_alone_is_not_all_of_a_short_run() -> None:
    assert [loaded(f"epochs={n}").frozen_epochs for n in (1, 2, 3, 20)] == [0, 1, 2, 2]
    assert loaded("epochs=3", "frozen_epochs=3").frozen_epochs == 3
    with pytest.raises(ConfigError, match=r"frozen_epochs = 4: must be in 0\.\.epochs"):
        loaded("epochs=3", "frozen_epochs=4")


def test_a_field_with_a_flag_may_be_set_too(capsys: pytest.CaptureFixture[str]) -> None:
    paths = [text for name in PATHS for text in ("--set", f"{name}=runs/{name}")]
    train_app([*paths, "--set", "epochs=7", "--print-config"], standalone_mode=False)
    printed = json.loads(capsys.readouterr().out)
    assert printed["epochs"] == 7
    # As given, though a checkpoint publishes the last component only.
    assert [printed[name] for name in PATHS] == [f"runs/{name}" for name in PATHS]
    train_app(
        [*paths, "--set", "epochs=7", "--epochs", "1", "--print-config"], standalone_mode=False
    )
    printed = json.loads(capsys.readouterr().out)
    assert (printed["epochs"], printed["frozen_epochs"]) == (1, 0)


def test_preprocessing_follows_the_backbone(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    paths = 'manifest = "m"\nphotos = "p"\nout = "o"\n'
    file.write_text(paths + 'backbone = "inception_v3"\n')
    spec = load_config(file, {}).preprocessing
    assert (spec.crop_size, spec.mean) == (299, (0.5, 0.5, 0.5))
    file.write_text(paths + "[preprocessing]\ncrop_size = 192\nresize_size = 192\n")
    spec = load_config(file, {}).preprocessing
    assert (spec.crop_size, spec.mean) == (192, BACKBONES["mobilenet_v2"].mean)
    assert Augmentation().side(BACKBONES["mobilenet_v2"].preprocessing) == 256  # the paper's
    # Never a smaller scale than the network is served at.
    assert Augmentation().side(PreprocessSpec(resize_size=320, crop_size=224)) == 320
    file.write_text(paths + "[augmentation]\nresize = 230\n")
    assert load_config(file, {}).augmentation.side(spec) == 230
    file.write_text(paths + "[augmentation]\nrotate = 5\n")
    with pytest.raises(ConfigError, match="augmentation"):
        load_config(file, {})
