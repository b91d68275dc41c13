"""Ordinary mistakes at ``nima train`` and ``nima evaluate`` end in a line that says what to do."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from nima_client.preprocess import PreprocessSpec
from nima_training.benchmark import app as benchmark_app
from nima_training.checkpoint import reference_quantiles, save_checkpoint
from nima_training.cli.evaluate import app as evaluate_app
from nima_training.cli.prepare import app as prepare_app
from nima_training.cli.train import app as train_app
from nima_training.distill.measure import app as measure_app
from nima_training.models import create_model
from nima_training.state import StateError, load_state, save_state

WriteToml = Callable[..., Path]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``refused(app, *arguments)``: the one line with which the command ends."""

    def run(app: typer.Typer, *arguments: object) -> str:
        with pytest.raises(SystemExit) as stopped:
            app([str(argument) for argument in arguments])
        assert stopped.value.code == 2
        text = capsys.readouterr().err
        assert text.count("\n") == 1, text
        return text

    return run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("c") / "tiny"
    meta = {
        "name": "tiny", "backbone": "mobilenet_v3_small", "dropout": 0.0,
        "preprocessing": PreprocessSpec(resize_size=64, crop_size=64).to_dict(),
        "reference": {"set": "x", "quantiles": reference_quantiles(np.arange(9.0))},
    }  # fmt: skip
    return save_checkpoint(folder, create_model("mobilenet_v3_small", "none", 0.0), meta)


def test_a_file_that_is_not_there(refused: Callable[..., str], tmp_path: Path) -> None:
    gone = tmp_path / "gone.toml"
    told = refused(train_app, "--config", gone)
    assert told == f"nima train: {gone}: No such file or directory\n"
    labels = tmp_path / "gone.txt"
    told = refused(prepare_app, labels, "--photos", tmp_path, "--out", tmp_path / "m.parquet")
    assert told == f"nima prepare: {labels}: No such file or directory\n"


def test_a_manifest_that_is_no_parquet(
    refused: Callable[..., str], checkpoint: Path, write_toml: WriteToml, tmp_path: Path
) -> None:
    manifest = tmp_path / "labels.csv"
    manifest.write_text("image_id,r1\n")
    file = write_toml(tmp_path / "c.toml", tmp_path / "run", manifest=str(manifest))
    assert "labels.csv cannot be read as Parquet" in refused(train_app, "--config", file)
    there = ("--manifest", manifest, "--photos", tmp_path, "--out", tmp_path / "out")
    assert "make a manifest with nima prepare" in refused(evaluate_app, checkpoint, *there)


def test_an_output_that_is_a_file(
    refused: Callable[..., str],
    checkpoint: Path,
    write_toml: WriteToml,
    sixty_four: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    file = write_toml(tmp_path / "c.toml", out, batch_size=16)
    assert "out is not a folder: choose another place" in refused(train_app, "--config", file)
    there = ("--manifest", sixty_four[0], "--photos", sixty_four[1], "--out", out)
    refusal = refused(evaluate_app, checkpoint, *there, "--split", "val")
    assert "out is not a folder: choose another place" in refusal
    assert out.read_text() == "mine"


def test_inputs_and_batches_that_are_too_small_for_the_network(
    refused: Callable[..., str], write_toml: WriteToml, tmp_path: Path
) -> None:
    small = ("--set", "preprocessing={crop_size=16, resize_size=16}")
    file = write_toml(tmp_path / "c.toml", tmp_path / "run", backbone="vgg16_gap", batch_size=16)
    refusal = refused(train_app, "--config", file, *small)
    assert "vgg16_gap does not take images of 16 x 16 pixels: raise crop_size" in refusal
    file = write_toml(tmp_path / "c.toml", tmp_path / "run", backbone="mobilenet_v2", batch_size=1)
    refusal = refused(train_app, "--config", file, *small)
    assert "one photo of 16 x 16 pixels is too little for the statistics" in refusal
    frozen = ("--set", "norm_statistics='frozen'", "--epochs", 1, "--set", "workers=0")
    there = [str(a) for a in ("--config", file, *small, *frozen)]
    train_app(there, standalone_mode=False)  # as the refusal says


def test_a_damaged_state(
    refused: Callable[..., str], write_toml: WriteToml, tmp_path: Path
) -> None:
    file = write_toml(tmp_path / "c.toml", tmp_path / "run", batch_size=16, epochs=1)
    train_app(["--config", str(file)], standalone_mode=False)
    state = tmp_path / "run/state.pt"
    whole = state.read_bytes()
    for damaged in (whole[:5000], b"not a state", b"", b"\x80\x02K\x01."):
        state.write_bytes(damaged)
        text = refused(train_app, "--config", file)
        assert f"{state} is damaged: put a copy of it back, or delete it" in text
    torch.save({"features.0.0.weight": torch.zeros(3)}, state)
    assert f"{state} is no state of a run: delete it" in refused(train_app, "--config", file)


def test_only_a_mapping_is_a_state(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    assert load_state(path) is None
    torch.save([1, 2], path)
    with pytest.raises(StateError, match="damaged"):
        load_state(path)
    save_state(path, {"at": 3})
    assert load_state(path) == {"at": 3}


def test_a_disk_without_room_for_a_state(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_state(path, {"at": 3})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, limits[1]))  # bytes of any file
    try:
        with pytest.raises(OSError, match="File too large"):
            save_state(path, {"model": torch.zeros(50_000), "optimiser": torch.zeros(50_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load_state(path) == {"at": 3}
    assert list(tmp_path.iterdir()) == [path]


def test_memory_and_processes_that_run_out(
    refused: Callable[..., str],
    write_toml: WriteToml,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def too_much(*_: object) -> torch.Tensor:
        return torch.empty(1 << 56, dtype=torch.uint8)

    def too_much_for_a_gpu(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 …")

    def killed(*_: object) -> torch.Tensor:
        for process in multiprocessing.active_children():  # those of the DataLoader
            process.kill()
        time.sleep(60)
        return torch.empty(0)

    def another(*_: object) -> torch.Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    file = write_toml(tmp_path / "c.toml", tmp_path / "run", batch_size=16, workers=1)
    for backward in (too_much, too_much_for_a_gpu):
        monkeypatch.setattr("nima_training.learner.Learner.backward", backward)
        refusal = refused(train_app, "--config", file)
        assert "too little memory for batches of 16: set a smaller batch_size" in refusal
    monkeypatch.setattr("nima_training.learner.Learner.backward", killed)
    refusal = refused(train_app, "--config", file)
    assert "killed by signal: Killed): set fewer workers" in refusal
    monkeypatch.setattr("nima_training.learner.Learner.backward", another)
    with pytest.raises(RuntimeError, match="mat1"):  # a fault of ours keeps its traceback
        train_app(["--config", str(file)], standalone_mode=False)


@pytest.mark.parametrize("content", [b"\xb0 no pickle", b"", b"PK\x03\x04 cut short"])
def test_damaged_imagenet_weights(
    refused: Callable[..., str],
    write_toml: WriteToml,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    content: bytes,
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub/checkpoints/mobilenet_v3_small-047dcff4.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    file = write_toml(tmp_path / "c.toml", tmp_path / "run", weights="imagenet")
    refusal = refused(train_app, "--config", file, "--batch-size", 16)
    assert f"{place} is damaged or no whole copy: fetch https://" in refusal


def test_programs_that_measure(
    refused: Callable[..., str], checkpoint: Path, tmp_path: Path
) -> None:
    nowhere = tmp_path / "nowhere"
    assert f"{nowhere} is not a folder of photos" in refused(benchmark_app, nowhere)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    refusal = refused(benchmark_app, tmp_path, "--backbone", "vgg11")
    assert "unknown backbones ['vgg11']; known: " in refusal
    there = ("--photos", tmp_path, "--teacher", tmp_path / "t.tflite")
    assert "nowhere is not a checkpoint" in refused(measure_app, nowhere, *there)
    assert "was not made by nima distill" in refused(measure_app, checkpoint, *there)
