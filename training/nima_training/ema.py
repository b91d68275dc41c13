"""Exponential moving average of a network's state, a smoother end point than the last step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class EMA:
    """``average = decay * average + (1 - decay) * value`` for every floating tensor of the state.

    The decay ramps up as ``(1 + n) / (10 + n)`` at first, as in timm, so that the start does not
    linger in the average. Integer buffers are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.state: dict[str, Tensor] = {
            name: value.detach().clone() for name, value in model.state_dict().items()
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Fold in the current weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in model.state_dict().items():
            average = self.state[name]
            if average.is_floating_point():
                average.lerp_(value.detach().to(average.dtype), 1 - decay)
            else:
                average.copy_(value)

    def load(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Go on from ``state`` after ``updates``, on the devices of the network's own tensors."""
        self.state = {name: state[name].to(own.device) for name, own in self.state.items()}
        self.updates = updates
