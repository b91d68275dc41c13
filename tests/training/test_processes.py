"""A run of two processes (gloo): what they compute, count and save together."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from nima_training.checkpoint import load_checkpoint
from nima_training.config import TrainConfig, load_config
from nima_training.data.dataset import EpochBatches
from nima_training.loop import MAX_EMPTY_BATCHES, Trainer, train

SmallConfig = Callable[..., TrainConfig]
WriteToml = Callable[..., Path]


def quiet() -> Console:
    return Console(quiet=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_in_two(file: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the configuration in two processes."""
    torchrun = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
        "--master-addr=127.0.0.1",
        f"--master-port={free_port()}", "-m", "nima_training.cli.train", "--config", str(file),
    ]  # fmt: skip
    return subprocess.run(
        torchrun, env=environment, capture_output=True, text=True, timeout=200, check=False
    )


def train_in_two(file: Path, environment: dict[str, str]) -> str:
    """The same to its end; returns what they printed."""
    done = run_in_two(file, environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_two_processes_match_one_with_the_doubled_batch(
    small_config: SmallConfig, write_toml: WriteToml, one_thread: dict[str, str], tmp_path: Path
) -> None:
    # Without a dropout of its own, which would draw other numbers on each rank.
    changes = {
        "epochs": 2, "frozen_epochs": 1, "norm_statistics": "frozen", "patience": 0,
        "backbone": "mobilenet_v2",
    }  # fmt: skip
    one = write_toml(tmp_path / "1.toml", tmp_path / "one", batch_size=16, **changes)
    # Without a word on the CPU: two processes find it, and each other.
    two = write_toml(tmp_path / "2.toml", tmp_path / "two", batch_size=8, cpu=False, **changes)
    train(load_config(one, {}), quiet())
    assert train_in_two(two, one_thread).count("best checkpoint") == 1
    first, second = (load_file(tmp_path / out / "last/model.safetensors") for out in ("one", "two"))
    start = Trainer(
        small_config(tmp_path / "x", backbone="mobilenet_v2"), quiet()
    ).model.state_dict()
    moved = max(
        (first[n] - start[n]).abs().max().item() for n in first if first[n].is_floating_point()
    )
    apart = max(
        (first[n] - second[n]).abs().max().item() for n in first if first[n].is_floating_point()
    )
    assert moved > 1e-3
    losses = [
        [json.loads(line)["train_loss"] for line in (tmp_path / out / "history.jsonl").open()]
        for out in ("one", "two")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-3)
    # Gradients summed in another order; Adam divides small ones by their own size.
    assert apart < 0.05 * moved


def batches(epoch: int, rank: int) -> EpochBatches:
    """Those of 64 photos, 8 a process."""
    return EpochBatches(64, 8, 0, epoch, rank, 2)


def test_the_figures_of_two_processes_are_those_of_the_checkpoint(
    sixty_four: tuple[Path, Path],
    small_config: SmallConfig,
    write_toml: WriteToml,
    one_thread: dict[str, str],
    tmp_path: Path,
) -> None:
    # Batch statistics, so that each process has running ones of its own; and a broken photo that
    # both come across, in one epoch and another.
    photos, epochs = tmp_path / "photos", 3
    seen = [
        {row for epoch in range(epochs) for batch in batches(epoch, rank) for row in batch}
        for rank in (0, 1)
    ]
    broken = min(seen[0] & seen[1])
    shutil.copytree(sixty_four[1], photos)
    (photos / f"photo{broken:03d}.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    out = tmp_path / "run"
    printed = train_in_two(
        write_toml(
            tmp_path / "c.toml", out, photos=str(photos), epochs=epochs, batch_size=8,
            patience=0, ema_decay=0.5, backbone="mobilenet_v2", backbone_lr=1e-2,
        ),
        one_thread,
    )  # fmt: skip
    assert f"photo{broken:03d}.png" in printed
    last = load_checkpoint(out / "last")
    assert last.meta["metrics"]["skipped_files"] == 1
    assert last.meta["metrics"]["skipped_validation_files"] == 1
    alone = Trainer(
        small_config(tmp_path / "x", photos=photos, backbone="mobilenet_v2", batch_size=8), quiet()
    )
    alone.model.load_state_dict(last.model.state_dict())
    again, _ = alone.validate()
    for name in ("emd_r1", "emd_r2", "mae_mean", "mae_std"):
        noted = last.meta["metrics"]["validation"][name]["value"]
        assert noted == pytest.approx(again[name]["value"], rel=1e-5), name


def test_a_process_without_photos_stays_in_step_and_its_files_are_saved(
    sixty_four: tuple[Path, Path],
    write_toml: WriteToml,
    one_thread: dict[str, str],
    tmp_path: Path,
) -> None:
    # So many empty batches of the second process that it ends the run, after updates that each of
    # the two took part in; what the first then saved knows the files of both.
    theirs = list(EpochBatches(64, 2, 0, 0, 1, 2))[:MAX_EMPTY_BATCHES]
    photos = Path(shutil.copytree(sixty_four[1], tmp_path / "photos"))
    for row in (row for batch in theirs for row in batch):
        (photos / f"photo{row:03d}.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    file = write_toml(
        tmp_path / "c.toml", tmp_path / "run", photos=str(photos), batch_size=2, save_seconds=0.0,
        backbone="mobilenet_v2",
    )  # fmt: skip
    done = run_in_two(file, one_thread)
    assert done.returncode != 0
    assert "no photo of 10 batches in a row is readable" in done.stderr
    state = torch.load(tmp_path / "run/state.pt", weights_only=True)
    updates = state["at"]["update"]
    assert updates >= MAX_EMPTY_BATCHES - 2  # the last saving may have been cut off
    assert sorted(state["skipped"]) == sorted(row for batch in theirs[:updates] for row in batch)
