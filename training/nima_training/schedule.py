"""Where a run is, and what that makes of its learning rates."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nima_training.config import TrainConfig


@dataclass
class Progressed:
    """Where a run is; the small part of its state."""

    epoch: int = 0
    batch: int = 0
    """Micro-batches of this epoch already done."""
    update: int = 0
    best: float = math.inf
    """Smallest :func:`nima_training.metrics.as_error` so far."""
    best_epoch: int = -1
    stale: int = 0
    """Epochs since the best one."""
    loss_sum: float = 0.0
    """Of this epoch's readable photos, of all processes."""
    photos: int = 0
    """How many these are."""
    plateau_scale: float = 1.0
    done: bool = False

    def judge(self, error: float, config: TrainConfig) -> bool:
        """Take in an epoch's error: whether it is the best one; a plateau lowers the rates."""
        if error < self.best or self.best_epoch < 0:
            self.best, self.best_epoch, self.stale = error, self.epoch, 0
            return True
        self.stale += 1
        if config.schedule == "plateau" and self.stale % config.plateau_patience == 0:
            self.plateau_scale *= config.plateau_factor
        return False

    def next_epoch(self, config: TrainConfig) -> bool:
        """Go on to the next epoch: whether early stopping ends the run here instead.

        While a frozen stage lasts it does not: the network that is to be trained has not begun.
        Where the backbone thaws, patience and plateaus begin anew; the best epoch stands.
        """
        self.epoch += 1
        self.batch, self.photos, self.loss_sum = 0, 0, 0.0
        thaws = self.epoch <= config.frozen_epochs < config.epochs
        if thaws and self.epoch == config.frozen_epochs:
            self.stale, self.plateau_scale = 0, 1.0
        stopped = not thaws and 0 < config.patience <= self.stale
        self.done = stopped or self.epoch >= config.epochs
        return stopped


def learning_rate_factor(at: Progressed, config: TrainConfig, updates_per_epoch: int) -> float:
    """What both learning rates are multiplied by at the next update.

    One cosine to zero over the run, the steps of the plateau schedule, or 1. It is reached by a
    linear warm-up over ``config.warmup`` of the run: at its start, and again where the backbone
    thaws, whose pretrained weights a new optimiser would take far in its first steps.
    """
    total = updates_per_epoch * config.epochs
    warm = round(config.warmup * total)
    factor = at.plateau_scale
    if config.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * max(0, at.update - warm) / max(1, total - warm)))
    thaw = config.frozen_epochs * updates_per_epoch
    of_phase = at.update - thaw if at.update >= thaw else at.update
    return factor * min(1.0, (of_phase + 1) / (warm + 1))
