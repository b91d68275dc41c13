"""Distillation after a kill on a GPU, on a disk with too little room, and into a file."""

from __future__ import annotations

import errno
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from nima_client.preprocess import PreprocessSpec
from nima_training.distill import pool
from nima_training.distill.config import DistillConfig, StageConfig, ViewConfig
from nima_training.distill.recipe import distill
from nima_training.distill.stages import Stage, train_stage

AdamW = torch.optim.AdamW


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_stage_goes_on_on_the_device_of_its_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    # The meta device stands for a GPU: states are read to the CPU, and it refuses to mix the two.
    warnings.filterwarnings("ignore", "for .*: copying from a non-meta parameter")
    monkeypatch.setattr("nima_training.distill.stages.SAVE_EVERY_SECONDS", -1.0)
    monkeypatch.setattr("torch.optim.AdamW", lambda p, fused, **kw: AdamW(p, **kw))

    def run(device: str, steps: int) -> None:
        def loss(rows: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
            nonlocal steps
            steps -= 1
            if steps < 0:
                raise KeyboardInterrupt
            return torch.zeros((), requires_grad=True)

        config = StageConfig(4, batch_size=16)
        network = nn.Linear(2, 2, device=device)
        stage = Stage("s", network, loss, 64, lambda state: (1.0, ""), config)
        train_stage(stage, tmp_path / "s.pt", 0.0, 0.9, 0, Console(quiet=True))

    with pytest.raises(KeyboardInterrupt):
        run("cpu", 5)
    run(device, 11)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
def test_room_for_all_views_is_taken_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build() -> None:
        spec = PreprocessSpec(resize_size=64, crop_size=64)
        pool.build_pool(tmp_path, [tmp_path / "a.png"], 100, spec, ViewConfig(), 0, 1)

    def interrupted(workers: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pool, "worker_pool", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build()
    assert (tmp_path / pool.PIXELS_FILE).stat().st_blocks * 512 >= 100 * 64 * 64 * 3

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device.*pixels\.npy"):
        build()  # goes on with the folder, and says so there, too


@pytest.mark.parametrize("below", ["", "deep"])
def test_an_output_that_is_a_file_is_told_before_the_work(tmp_path: Path, below: str) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    work = tmp_path / "work"
    config = DistillConfig(tmp_path / "photos", tmp_path / "t.tflite", work, out / below)
    with pytest.raises(OSError, match="out is not a folder: choose another place"):
        distill(config, Console(quiet=True))
    assert out.read_text() == "mine"
    assert not config.work_dir.exists()
