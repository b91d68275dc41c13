"""Files that cannot be read, and numbers that are not finite, in the middle of a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from nima_training.checkpoint import load_checkpoint
from nima_training.config import TrainConfig
from nima_training.data.dataset import EpochBatches, collate, normalise_on_device
from nima_training.distribution import probabilities
from nima_training.learner import Learner
from nima_training.loop import MAX_EMPTY_BATCHES, Trainer
from nima_training.losses import emd
from nima_training.run_dir import TrainingError

SmallConfig = Callable[..., TrainConfig]


@pytest.fixture
def photos(sixty_four: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the photos, to be broken."""
    return Path(shutil.copytree(sixty_four[1], tmp_path / "photos"))


def break_photos(folder: Path, rows: list[int]) -> None:
    for row in rows:
        (folder / f"photo{row:03d}.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")


def trainer_of(config: TrainConfig) -> Trainer:
    return Trainer(config, Console(quiet=True))


def begun(config: TrainConfig) -> Trainer:
    """A trainer before its first update."""
    trainer = trainer_of(config)
    trainer.learner.start_phase(False, None)
    trainer.learner.set_mode()
    return trainer


def gradients(learner: Learner) -> dict[str, torch.Tensor]:
    named = learner.model.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def test_a_batch_without_a_readable_photo_is_passed_over(
    small_config: SmallConfig, photos: Path, tmp_path: Path
) -> None:
    broken = list(EpochBatches(64, 2, 0, 0, 0, 1))[7]
    break_photos(photos, broken)
    out = tmp_path / "run"
    trainer = trainer_of(
        small_config(out, photos=photos, epochs=1, batch_size=2, norm_statistics="frozen")
    )
    trainer.run()
    assert sorted(trainer.skipped) == sorted(broken)
    assert trainer.at.update == 32
    assert load_checkpoint(out / "last").meta["metrics"]["skipped_files"] == 2


def test_a_run_without_photos_ends_soon(
    small_config: SmallConfig, photos: Path, tmp_path: Path
) -> None:
    break_photos(photos, list(range(64)))
    trainer = trainer_of(small_config(tmp_path / "a", photos=photos, batch_size=2))
    with pytest.raises(
        TrainingError, match=r"no photo of 10 batches in a row is readable, e\.g\. ph"
    ):
        trainer.run()
    assert len(trainer.skipped) == 2 * MAX_EMPTY_BATCHES
    short = trainer_of(small_config(tmp_path / "b", photos=photos, batch_size=16))
    with pytest.raises(TrainingError, match="no training photo of epoch 0 is readable"):
        short.run()


def test_nothing_is_learnt_from_nothing(small_config: SmallConfig, tmp_path: Path) -> None:
    trainer = begun(small_config(tmp_path, batch_size=4, ema_decay=0.5))
    learner, before = trainer.learner, state_of(trainer)
    nothing = collate([{"row": 3, "error": "broken"}])
    assert len(learner.backward(nothing, last=True)) == 0
    assert trainer.model.training
    found = gradients(learner)
    assert len(found) == len(list(trainer.model.parameters()))  # DDP waits for each of them
    assert not any(gradient.any() for gradient in found.values())
    learner.update(1.0, photos=0)
    after = trainer.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not gradients(learner)


def test_accumulated_gradients_are_the_mean_over_readable_photos(
    small_config: SmallConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = begun(
        small_config(tmp_path, batch_size=4, accumulate=3, clip_norm=0.0, norm_statistics="frozen")
    )
    learner = trainer.learner
    samples = [trainer.train_set[row] for row in range(5)]
    batches = [collate(part) for part in (samples[:4], [{"row": 9, "error": "x"}], samples[4:])]
    for number, batch in enumerate(batches):
        learner.backward(batch, last=number == 2)
    found: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(learner.optimiser, "step", lambda: found.update(gradients(learner)))
    learner.update(1.0, photos=5)
    together = collate(samples)
    x = normalise_on_device(together["pixels"], trainer.config.preprocessing)
    emd(probabilities(trainer.model(x)), together["targets"]).mean().backward()
    for name, gradient in gradients(learner).items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(found[name], gradient, atol=1e-4 * scale + 1e-9, rtol=1e-3)


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_gradients_that_are_not_finite_change_nothing(
    small_config: SmallConfig, tmp_path: Path, clip_norm: float
) -> None:
    trainer = begun(small_config(tmp_path, batch_size=4, clip_norm=clip_norm))
    trainer.learner.backward(collate([trainer.train_set[row] for row in range(4)]), last=True)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    gradient = next(trainer.model.parameters()).grad
    assert gradient is not None
    gradient.fill_(float("inf"))
    with pytest.raises(TrainingError, match="gradients are not finite: lower the learning rates"):
        trainer.learner.update(1.0, photos=4)
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_a_diverged_network_does_not_replace_a_good_state(
    small_config: SmallConfig, tmp_path: Path
) -> None:
    trainer = begun(small_config(tmp_path, batch_size=4))
    trainer._save()
    good = (tmp_path / "state.pt").read_bytes()
    norm = next(m for m in trainer.model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert norm.running_var is not None
    norm.running_var.fill_(float("nan"))  # seen in validation only: training has its own statistics
    with pytest.raises(TrainingError, match="predictions on the validation split are not finite"):
        trainer.validate()
    with pytest.raises(TrainingError, match="weights are not finite"):
        trainer._save()
    assert (tmp_path / "state.pt").read_bytes() == good
