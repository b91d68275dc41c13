"""What the options of a run do: precision, compilation, schedules, averaging, what is logged."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torchvision.models import mobilenet_v3_small

from nima_client._files import atomic_file
from nima_training import metrics
from nima_training.checkpoint import load_checkpoint
from nima_training.cli.train import app as train_app
from nima_training.config import TrainConfig, load_config
from nima_training.ema import EMA
from nima_training.loop import Trainer, train
from nima_training.run_dir import TrainingError
from nima_training.schedule import Progressed, learning_rate_factor

SmallConfig = Callable[..., TrainConfig]
WriteToml = Callable[..., Path]


def quiet() -> Console:
    return Console(quiet=True)


def history(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]


def run_alone(file: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Train in a process of its own: a process has one precision for all its runs."""
    return subprocess.run(
        [sys.executable, "-m", "nima_training.cli.train", "--config", str(file)],
        env=environment, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip


def test_bf16_learns_as_fp32_does(
    write_toml: WriteToml, one_thread: dict[str, str], tmp_path: Path
) -> None:
    # The head alone, then the whole network: what is wrapped once is wrapped again.
    files = {
        precision: write_toml(
            tmp_path / f"{precision}.toml", tmp_path / precision, precision=precision, epochs=2,
            frozen_epochs=1, batch_size=16,
        )
        for precision in ("no", "bf16")
    }  # fmt: skip
    train(load_config(files["no"], {}), quiet())
    done = run_alone(files["bf16"], one_thread)
    assert done.returncode == 0, done.stderr[-2000:]
    full, half = (history(tmp_path / name)[-1]["train_loss"] for name in ("no", "bf16"))
    assert half != full  # it did compute in fewer bits
    assert half == pytest.approx(full, rel=0.02)
    state = torch.load(tmp_path / "bf16" / "state.pt", weights_only=True)["model"]
    assert {v.dtype for v in state.values() if v.is_floating_point()} == {torch.float32}


def test_fp16_without_a_gpu_is_refused_in_one_line(
    write_toml: WriteToml, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_toml(tmp_path / "c.toml", tmp_path / "run", precision="fp16", batch_size=16)
    with pytest.raises(SystemExit) as stopped:
        train_app(["--config", str(file)])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "nima train: precision = 'fp16' needs a GPU; a CPU can do 'bf16' or 'no'\n"
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_compiled_network_learns_as_a_plain_one_does(
    write_toml: WriteToml, one_thread: dict[str, str], tmp_path: Path
) -> None:
    found = {}
    for compiled in (False, True):
        out = tmp_path / str(compiled)
        file = write_toml(
            tmp_path / f"{compiled}.toml", out, compile=compiled, epochs=2, frozen_epochs=1,
            batch_size=32,
            backbone="vgg16_gap",  # few layers, so that the compiler is done in a minute
        )  # fmt: skip
        if compiled:
            done = run_alone(file, one_thread)
            assert done.returncode == 0, done.stderr[-2000:]
        else:
            train(load_config(file, {}), quiet())
        found[compiled] = history(out)[1]
        load_checkpoint(out / "last")  # under the names of the plain network
    for name in ("train_loss", "emd_r2"):
        assert found[True][name] == pytest.approx(found[False][name], rel=1e-2), name


def test_a_thawed_network_is_compiled_again_under_its_plain_names(
    small_config: SmallConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(
        tmp_path / "run", compile=True, epochs=2, frozen_epochs=1, batch_size=32, ema_decay=0.9,
    )  # fmt: skip
    # Traced, without the minutes of a compiler.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    trainer = Trainer(config, quiet())
    names = set(trainer.model.state_dict())
    trainer.run()
    state = torch.load(config.out / "state.pt", weights_only=True)
    assert set(state["model"]) == set(state["ema"][0]) == names
    load_checkpoint(config.out / "last")
    assert Trainer(config, quiet()).run()  # and its state can be read again


def test_a_resumed_thaw_keeps_the_loss_scale(small_config: SmallConfig, tmp_path: Path) -> None:
    config = small_config(tmp_path / "run", epochs=2, frozen_epochs=1, batch_size=16)
    trainer = Trainer(config, quiet())
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    saved = {**trainer.accelerator.scaler.state_dict(), "scale": 512.0}
    # As saved where the backbone thaws, by a version that dropped the optimiser's state there.
    trainer.learner.start_phase(False, {"optimiser": None, "scaler": saved})
    assert trainer.accelerator.scaler.get_scale() == 512.0


def test_accumulated_gradients_are_those_of_the_larger_batch(
    small_config: SmallConfig, tmp_path: Path
) -> None:
    # Without batch statistics, which see micro-batches.
    same = {"epochs": 1, "norm_statistics": "frozen", "backbone": "mobilenet_v2"}
    weights = []
    for name, sizes in (
        ("one", {"batch_size": 16}),
        ("two", {"batch_size": 8, "accumulate": 2}),
    ):
        train(small_config(tmp_path / name, **same, **sizes), quiet())
        weights.append(load_checkpoint(tmp_path / name / "last").model.state_dict())
        assert history(tmp_path / name)[0]["updates"] == 4
    start = Trainer(small_config(tmp_path / "x", **same), quiet()).model.state_dict()
    floats = [name for name, value in start.items() if value.is_floating_point()]
    moved = max((weights[0][n] - start[n]).abs().max().item() for n in floats)
    apart = max((weights[0][n] - weights[1][n]).abs().max().item() for n in floats)
    assert moved > 1e-3
    assert apart < 0.05 * moved


def test_averaged_weights_by_hand() -> None:
    model = nn.Linear(1, 1, bias=False)
    ema = EMA(model, 0.5)
    start = model.weight.item()
    with torch.no_grad():
        model.weight.fill_(start + 1)
    ema.update(model)  # the ramp: decay (1 + 1) / (10 + 1)
    expected = start * 2 / 11 + (start + 1) * 9 / 11
    assert ema.state["weight"].item() == pytest.approx(expected)
    for _ in range(20):
        ema.update(model)
    assert ema.state["weight"].item() == pytest.approx(start + 1, abs=1e-4)


def test_validation_and_checkpoints_use_the_averaged_weights(
    small_config: SmallConfig, tmp_path: Path
) -> None:
    trainer = Trainer(
        small_config(tmp_path / "run", epochs=1, batch_size=16, ema_decay=0.9), quiet()
    )
    trainer.run()
    assert trainer.learner.ema is not None
    saved = load_checkpoint(tmp_path / "run" / "last").model.state_dict()
    averaged = trainer.learner.ema.state
    assert all(torch.equal(saved[name], value) for name, value in averaged.items())
    live = trainer.model.state_dict()
    assert any(not torch.equal(live[name], value) for name, value in saved.items())


def test_schedules(small_config: SmallConfig, tmp_path: Path) -> None:
    cosine = small_config(tmp_path, epochs=10, warmup=0.1)
    factors = [learning_rate_factor(Progressed(update=u), cosine, 10) for u in range(101)]
    assert factors[:10] == pytest.approx([n / 11 for n in range(1, 11)])
    assert factors[10] == 1
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0)
    plateau = small_config(tmp_path, schedule="plateau", plateau_patience=2, plateau_factor=0.1)
    at, scales = Progressed(), []
    for epoch, error in enumerate((5.0, 4.0, 4.0, 4.5, 4.0, 4.0, 3.0, 3.0)):
        at.epoch = epoch
        assert at.judge(error, plateau) == (epoch in (0, 1, 6))
        scales.append(learning_rate_factor(at, plateau, 10))
    assert scales == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.01])
    assert (at.best, at.best_epoch, at.stale) == (3.0, 6, 1)


def test_the_best_epoch_is_that_of_the_chosen_metric(
    small_config: SmallConfig, tmp_path: Path
) -> None:
    result = {
        "spearman_mean": {"value": 0.4},
        "emd_r2": {"value": 0.1},
        "pearson_std": {"value": None},
    }
    assert metrics.as_error("spearman_mean", result) == -0.4  # higher is better
    assert metrics.as_error("emd_r2", result) == 0.1
    # An undefined correlation (all predictions equal) is never taken for the best.
    assert metrics.as_error("pearson_std", result) == np.inf
    out = tmp_path / "run"
    settings = {"backbone": "mobilenet_v2", "backbone_lr": 2e-3, "batch_size": 16}
    train(small_config(out, epochs=5, metric="pearson_mean", patience=0, **settings), quiet())
    values = [epoch["pearson_mean"] or -np.inf for epoch in history(out)]
    assert len(set(values)) > 1
    best = load_checkpoint(out / "best").meta
    assert best["training"]["epoch"] == int(np.argmax(values))


def test_what_a_run_logs(small_config: SmallConfig, tmp_path: Path) -> None:
    out, screen = tmp_path / "run", io.StringIO()
    console = Console(file=screen, force_terminal=True, color_system=None, width=100)
    train(small_config(out, epochs=2, batch_size=16, patience=0), console)
    assert "img/s" in screen.getvalue()
    assert "epoch 1: train EMD" in screen.getvalue()
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    lines = history(out)
    for name in ("train_loss", "emd_r1", "emd_r2", "accuracy", "images_per_second"):
        logged = [(event.step, event.value) for event in events.Scalars(name)]
        expected = [(line["epoch"], pytest.approx(line[name], rel=1e-5)) for line in lines]
        assert logged == expected
    meta = load_checkpoint(out / "best").meta
    assert meta["training"]["batch_size"] == 16
    assert len(meta["data_sha256"]) == 64
    assert meta["git_commit"] is None or len(meta["git_commit"].split("-")[0]) == 40


def test_an_epoch_done_again_after_a_kill_is_logged_once(
    small_config: SmallConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(tmp_path / "run", epochs=2, batch_size=16, patience=0)

    class Killed(Exception):
        pass

    def killed(trainer: Trainer) -> None:
        raise Killed  # after the epoch was logged, before its state is on the disk

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save", killed)
        with pytest.raises(Killed):
            train(config, quiet())
    assert len(history(config.out)) == 1
    train(config, quiet())
    assert [line["epoch"] for line in history(config.out)] == [0, 1]


def test_what_a_kill_left_half_written_is_removed(
    small_config: SmallConfig, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    (out / "best").mkdir(parents=True)
    halves = []
    weights = "best/model.0123456789abcdef.safetensors"  # until the JSON names them
    for path in (out / "state.pt", out / "best/model.safetensors", out / weights):
        try:
            with atomic_file(path, "wb") as file:
                file.write(b"half")
                file.flush()
                (half,) = (p for p in path.parent.glob(".*") if "killed" not in p.name)
                left = half.with_suffix("").with_suffix(".killed00.partial")
                left.write_bytes(b"half")  # what no handler removes
                raise InterruptedError
        except InterruptedError:
            halves.append(left)
    mine = out / ".state.pt.of-mine"
    mine.touch()
    assert all(half.exists() for half in halves)
    Trainer(small_config(out, epochs=1, batch_size=16), quiet()).run()
    assert mine.exists()
    assert not any(half.exists() for half in halves)
    assert sorted(path.name for path in (out / "best").iterdir()) == [
        "checkpoint.json",
        "model.safetensors",
    ]


def test_a_second_run_is_kept_out(
    small_config: SmallConfig, write_toml: WriteToml, one_thread: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    file = write_toml(tmp_path / "c.toml", out, epochs=1, batch_size=16)
    first = Trainer(small_config(out, epochs=1, batch_size=16), quiet())
    second = run_alone(file, one_thread)
    assert second.returncode == 2
    assert f"another run is writing to {out}" in second.stderr
    first.run()
    assert len(history(out)) == 1


def test_a_run_goes_on_with_the_processes_it_was_started_with(
    small_config: SmallConfig, tmp_path: Path
) -> None:
    config = small_config(tmp_path / "run", epochs=1, batch_size=16)
    train(config, quiet())
    state = torch.load(config.out / "state.pt", weights_only=True)
    torch.save({**state, "processes": 4}, config.out / "state.pt")
    with pytest.raises(TrainingError, match="a run of 4 processes, and this is one of 1"):
        train(config, quiet())


def test_weights_from_a_file_may_move_before_a_run_goes_on(
    small_config: SmallConfig, tmp_path: Path
) -> None:
    file = tmp_path / "machine" / "w.pth"
    file.parent.mkdir()
    torch.save(mobilenet_v3_small().state_dict(), file)
    config = small_config(tmp_path / "run", weights=str(file), epochs=1, batch_size=16)
    train(config, quiet())
    text = (config.out / "last" / "checkpoint.json").read_text()
    assert '"weights": "w.pth"' in text
    assert "machine" not in text + (config.out / "config.json").read_text()
    file.rename(tmp_path / "w.pth")
    for weights in (str(file), str(tmp_path / "w.pth")):
        train(replace(config, weights=weights), quiet())
    with pytest.raises(TrainingError, match=r"other settings \(weights\)"):
        train(replace(config, weights="none"), quiet())
    for kind in ("none", "imagenet"):
        assert replace(config, weights=kind).to_dict()["weights"] == kind
