"""The head alone, then the whole network: early stopping, warm-up and optimiser at the thaw."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from nima_training.config import TrainConfig
from nima_training.loop import Trainer, train
from nima_training.models import head_module
from nima_training.schedule import Progressed, learning_rate_factor

SmallConfig = Callable[..., TrainConfig]


def quiet() -> Console:
    return Console(quiet=True)


def epochs_of(config: TrainConfig, errors: list[float]) -> tuple[Progressed, list[float]]:
    """Where a run with these validation errors ends, and the plateau's scale in each epoch."""
    at, scales = Progressed(), []
    for error in errors:
        scales.append(at.plateau_scale)
        at.judge(error, config)
        at.next_epoch(config)
        if at.done:
            break
    return at, scales


def test_no_run_stops_before_its_thaw(small_config: SmallConfig, tmp_path: Path) -> None:
    stale = [1.0] + 19 * [2.0]
    settings = {"epochs": 20, "patience": 2, "schedule": "plateau", "plateau_patience": 2}
    at, scales = epochs_of(small_config(tmp_path, frozen_epochs=12, **settings), stale)
    assert (at.epoch, at.done) == (14, True)  # the two epochs of patience, of the whole network
    assert scales[11] < 1
    assert scales[12:] == [1, 1]  # its plateau begins anew
    assert (at.best, at.best_epoch) == (1.0, 0)  # but the best epoch stands
    assert epochs_of(small_config(tmp_path, frozen_epochs=0, **settings), stale)[0].epoch == 3
    # With no thaw ahead the head's own patience counts.
    assert epochs_of(small_config(tmp_path, frozen_epochs=20, **settings), stale)[0].epoch == 3


def test_a_stale_head_is_followed_by_the_whole_network(
    small_config: SmallConfig, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    settings = {
        "batch_size": 32,
        "head_lr": 1e-12,
        "backbone_lr": 1e-3,
        "norm_statistics": "frozen",
    }
    trainer = Trainer(
        small_config(out, epochs=5, frozen_epochs=4, patience=1, metric="accuracy", **settings),
        quiet(),
    )
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.run()
    assert trainer.at.epoch == 5
    moved = trainer.model.state_dict()["features.0.0.weight"] - before["features.0.0.weight"]
    assert moved.abs().max() > 0


def test_both_phases_warm_up(small_config: SmallConfig, tmp_path: Path) -> None:
    for schedule in ("cosine", "constant"):
        config = small_config(tmp_path, epochs=10, frozen_epochs=4, warmup=0.05, schedule=schedule)
        plain = small_config(tmp_path, epochs=10, warmup=0.05, schedule=schedule)
        of, same = (
            [learning_rate_factor(Progressed(update=u), c, 10) for u in range(100)]
            for c in (config, plain)
        )
        ramp = [n / 6 for n in range(1, 6)]
        assert of[:5] == pytest.approx(ramp)
        assert of[5:40] == same[5:40]
        assert of[40:45] == pytest.approx([r * f for r, f in zip(ramp, same[40:45], strict=True)])
        assert of[45:] == same[45:]


def test_a_run_killed_at_the_thaw_goes_on_exactly(
    small_config: SmallConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    settings = {"epochs": 2, "frozen_epochs": 1, "batch_size": 16, "warmup": 0.1, "dropout": 0.3}
    whole, killed = (small_config(tmp_path / name, **settings) for name in ("whole", "killed"))
    train(whole, quiet())
    frozen: dict[str, torch.Tensor] = {}
    plain = Trainer._epoch

    def epoch(trainer: Trainer) -> None:
        learner = trainer.learner
        assert learner.raw_optimiser is not None
        moments = learner.raw_optimiser.state
        head = head_module(trainer.model, "mobilenet_v3_small").get_submodule("1").weight
        if trainer.at.epoch == 1:
            # The head's moments go on; the backbone has none yet.
            assert torch.equal(moments[head]["exp_avg"], frozen["moment"])  # type: ignore[index]
            assert len(moments) == 2
            raise Killed
        plain(trainer)
        frozen["moment"] = moments[head]["exp_avg"].clone()  # type: ignore[index]

    for _ in range(2):  # in the same process, then from the file
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_epoch", epoch)
            with pytest.raises(Killed):
                train(killed, quiet())
    train(killed, quiet())
    first, second = (load_file(c.out / "last/model.safetensors") for c in (whole, killed))
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_a_run_of_the_head_alone_says_so(small_config: SmallConfig, tmp_path: Path) -> None:
    screen = io.StringIO()
    for frozen in (1, 0):
        config = small_config(tmp_path / str(frozen), epochs=1, frozen_epochs=frozen, batch_size=32)
        train(config, Console(file=screen, width=200))
        said = "only the head is trained: frozen_epochs is all of the epochs" in screen.getvalue()
        assert said == (frozen == 1)
        screen.truncate(0)
