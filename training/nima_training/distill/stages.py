"""One resumable stage of distillation: fresh views, the teacher's answers, the student's steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from nima_training.distill.config import StageConfig
from nima_training.ema import EMA
from nima_training.state import load_state, save_state

SAVE_EVERY_SECONDS = 120.0
LOG_EVERY = 50
MEASUREMENTS = 12
WARMUP = 0.03


@dataclass
class Stage:
    """What a stage trains and how it is judged.

    ``module`` is trained, ``fresh`` are its parameters with the head's learning rate;
    ``batches(step)`` gives the batches from that step on; ``loss`` maps a batch to the scalar
    loss; ``measure`` maps averaged weights to the selection error, lower is better, and a line to
    print.
    """

    name: str
    module: nn.Module
    fresh: list[nn.Parameter]
    batches: Callable[[int], Iterator[Tensor]]
    loss: Callable[[Tensor], Tensor]
    measure: Callable[[dict[str, Tensor]], tuple[float, str]]
    config: StageConfig
    keep_best: bool = True
    """Return the weights of the smallest selection error; False: the last ones."""


def learning_rate_factor(progress: float, floor: float = 0.0) -> float:
    """Linear warm-up, then a cosine from 1 to ``floor``; ``progress`` in [0, 1]."""
    if progress < WARMUP:
        return max(progress, 1e-3) / WARMUP
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - WARMUP) / (1 - WARMUP))))
    return floor + (1 - floor) * cosine


def train_stage(
    stage: Stage,
    state_file: Path,
    weight_decay: float,
    ema_decay: float,
    seed: int,
    console: Console,
) -> dict[str, Tensor]:
    """Train until the views or the minutes are spent; return the best (or last) averaged weights.

    Killed at any moment, the stage goes on from the last saved step when called again.

    Raises:
        FloatingPointError: the loss is not finite; names the step.
    """
    config, module = stage.config, stage.module
    fresh = {id(p) for p in stage.fresh}
    optimiser = torch.optim.AdamW(
        [
            {
                "params": [p for p in module.parameters() if id(p) not in fresh],
                "base_lr": config.learning_rate,
            },
            {"params": stage.fresh, "base_lr": config.head_learning_rate},
        ],
        lr=config.learning_rate,
        fused=True,
        weight_decay=weight_decay,
    )
    ema = EMA(module, ema_decay)
    step, spent, best_error, best = 0, 0.0, math.inf, ema.state
    if saved := load_state(state_file):
        module.load_state_dict(saved["module"])
        optimiser.load_state_dict(saved["optimiser"])
        ema.state, ema.updates = saved["ema"], saved["updates"]
        step, spent = saved["step"], saved["spent"]
        best_error, best = saved["best_error"], saved["best"]
        if saved["done"]:
            return best
        console.print(f"{stage.name}: resuming at step {step}")
    total = max(1, config.views // config.batch_size)
    budget = math.inf if config.max_minutes is None else config.max_minutes * 60

    def save(done: bool) -> None:
        save_state(
            state_file,
            {
                "module": module.state_dict(), "optimiser": optimiser.state_dict(),
                "ema": ema.state, "updates": ema.updates, "step": step, "spent": spent,
                "best_error": best_error, "best": best, "done": done,
            },
        )  # fmt: skip

    module.train()
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    batches = stage.batches(step)
    last_save = clock = time.monotonic()
    running, seen_steps, logged = 0.0, 0, spent
    measured = step * MEASUREMENTS // total
    while step < total and spent < budget:
        torch.manual_seed(seed * 1_000_003 + step)  # dropout is the same after a resume
        progress = max(step / total, spent / budget)
        for group in optimiser.param_groups:
            group["lr"] = group["base_lr"] * learning_rate_factor(progress, config.floor)
        value = stage.loss(next(batches))
        if not torch.isfinite(value):
            first = step * config.batch_size
            raise FloatingPointError(
                f"{stage.name}: loss is {value.item()} on views {first} to "
                f"{first + config.batch_size - 1} of the stage"
            )
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        ema.update(module)
        step += 1
        seen_steps += 1
        running += float(value.detach())
        now = time.monotonic()
        spent, clock = spent + now - clock, now
        if step % LOG_EVERY == 0:
            rate = seen_steps * config.batch_size / max(1e-9, spent - logged)
            console.print(
                f"{stage.name}: step {step}/{total}, {spent / 60:.1f} min, "
                f"loss {running / seen_steps:.4f}, {rate:.1f} img/s"
            )
            running, seen_steps, logged = 0.0, 0, spent
        ended = step == total or spent >= budget
        due = int(max(step / total, spent / budget) * MEASUREMENTS)
        if due > measured or ended:
            measured = due
            error, line = stage.measure(ema.state)
            if error < best_error or not stage.keep_best:
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
