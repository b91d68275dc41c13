"""One resumable stage of distillation: a network, a loss by row numbers, a measure."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from nima_client._files import remove_unfinished
from nima_training.distill.config import StageConfig
from nima_training.ema import EMA
from nima_training.state import load_state, save_state

SAVE_EVERY_SECONDS = 120.0
LOG_EVERY = 25
WARMUP = 0.03


class LossNotFinite(ValueError):
    """Training cannot go on; the message names stage, step and views."""


@dataclass
class Stage:
    """What a stage trains and on what.

    ``network`` is trained; ``loss`` gives its loss on sorted row numbers of ``count`` views, all
    random choices drawn from the given generator; ``measure`` maps averaged weights to the
    selection error, lower is better, and a line to print.
    """

    name: str
    network: nn.Module
    loss: Callable[[np.ndarray, np.random.Generator], Tensor]
    count: int
    measure: Callable[[dict[str, Tensor]], tuple[float, str]]
    config: StageConfig


def learning_rate_factor(progress: float) -> float:
    """Linear warm-up, then a cosine to zero; ``progress`` in [0, 1]."""
    if progress < WARMUP:
        return max(progress, 1e-3) / WARMUP
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - WARMUP) / (1 - WARMUP))))


def train_stage(
    stage: Stage,
    state_file: Path,
    weight_decay: float,
    ema_decay: float,
    seed: int,
    console: Console,
) -> dict[str, Tensor]:
    """Train until the epochs or the minutes are spent; return the best averaged state.

    Batch norms keep their statistics: distorted and mixed views would pull them away from those of
    photos. Killed at any moment, the stage goes on from the last saved step when called again.

    Raises:
        LossNotFinite: the loss became NaN or infinite.
    """
    config, network = stage.config, stage.network
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        parameters, lr=config.learning_rate, fused=True, weight_decay=weight_decay
    )
    ema = EMA(network, ema_decay)
    step, spent, best_error, best = 0, 0.0, math.inf, ema.state
    remove_unfinished(state_file)
    if saved := load_state(state_file):
        network.load_state_dict(saved["network"])
        optimiser.load_state_dict(saved["optimiser"])
        ema.load(saved["ema"], saved["updates"])
        step, spent = saved["step"], saved["spent"]
        best_error, best = saved["best_error"], saved["best"]
        console.print(f"{stage.name}: resuming at step {step}")
        if saved["done"]:
            return best
    count = stage.count
    per_epoch = count // config.batch_size
    total = max(1, round(per_epoch * config.epochs))
    budget = math.inf if config.max_minutes is None else config.max_minutes * 60

    def save(done: bool) -> None:
        save_state(
            state_file,
            {
                "network": network.state_dict(), "optimiser": optimiser.state_dict(),
                "ema": ema.state, "updates": ema.updates, "step": step, "spent": spent,
                "best_error": best_error, "best": best, "done": done,
            },
        )  # fmt: skip

    network.eval()
    last_save = clock = time.monotonic()
    running = torch.zeros(())
    seen_steps, logged = 0, spent
    while step < total and spent < budget:
        epoch, position = divmod(step, per_epoch)
        order = np.random.default_rng((seed, epoch)).permutation(count)
        rows = np.sort(order[position * config.batch_size : (position + 1) * config.batch_size])
        progress = max(step / total, spent / budget)
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(progress)
        value = stage.loss(rows, np.random.default_rng((seed, 7, step)))
        if not torch.isfinite(value):
            raise LossNotFinite(
                f"stage {stage.name}, step {step}: the loss is {value.item()} on the views "
                f"{rows.tolist()}; try another --seed in another --work-dir, or a larger --budget"
            )
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        ema.update(network)
        step += 1
        seen_steps += 1
        running += value.detach().cpu()
        now = time.monotonic()
        spent, clock = spent + now - clock, now
        if step % LOG_EVERY == 0:
            rate = seen_steps * config.batch_size / max(1e-9, spent - logged)
            console.print(
                f"{stage.name}: step {step}/{total}, loss {running.item() / seen_steps:.4f}, "
                f"{rate:.1f} img/s"
            )
            running, seen_steps, logged = torch.zeros(()), 0, spent
        if step % max(1, per_epoch // 2) == 0 or step == total or spent >= budget:
            error, line = stage.measure(ema.state)
            if error < best_error:
                best_error = error
                best = {name: tensor.clone() for name, tensor in ema.state.items()}
            console.print(
                f"{stage.name}: step {step}/{total}, {spent / 60:.1f} min, {line}", soft_wrap=True
            )
            clock = time.monotonic()  # measuring doesn't count against the budget
        if now - last_save > SAVE_EVERY_SECONDS:
            save(False)
            last_save = now
    save(True)
    return best
