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
    """Of this epoch's micro-batches, as the saving process saw them."""
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


def learning_rate_factor(at: Progressed, config: TrainConfig, updates_per_epoch: int) -> float:
    """What both learning rates are multiplied by at the next update.

    A linear warm-up over the first ``config.warmup`` of the run; then a cosine to zero, the steps
    of the plateau schedule, or 1.
    """
    total = updates_per_epoch * config.epochs
    warm = round(config.warmup * total)
    if at.update < warm:
        return (at.update + 1) / (warm + 1)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (at.update - warm) / max(1, total - warm)))
    return at.plateau_scale
