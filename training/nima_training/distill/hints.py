"""Hints: the student's feature maps are drawn towards the teacher's (FitNets, Romero et al., 2015).

Ten probabilities say little about a photo; the maps that led to them say much more, place by
place. At each tapped depth a 1x1 convolution takes the student's channels to the teacher's; the
loss is the squared error in units of the teacher's variance. These adapters are thrown away after
training.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

TAPS = {"mobilenet_v1": (5, 11, 13), "mobilenet_v2": (6, 13, 18)}
"""Blocks of ``model.features`` behind which maps are taken: the last of stride 8, 16 and 32."""


def tapped(blocks: nn.Sequential, taps: Sequence[int], x: Tensor) -> list[Tensor]:
    """The maps behind the blocks ``taps`` (ascending; the last one ends the network)."""
    maps = []
    for index, block in enumerate(blocks):
        x = block(x)
        if index in taps:
            maps.append(x)
    return maps


def channels(blocks: nn.Sequential, taps: Sequence[int]) -> list[int]:
    """Channels of the maps of :func:`tapped`."""
    with torch.inference_mode():
        return [x.shape[1] for x in tapped(blocks, taps, torch.zeros(1, 3, 64, 64))]


class HintLoss(nn.Module):
    """Squared error over the teacher's variance, averaged over the depths and the pooled last map.

    1 is what a constant answer would score, 0 is equality.
    """

    def __init__(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(
            nn.Conv2d(own, theirs, 1) for own, theirs in zip(student, teacher, strict=True)
        )

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The scalar loss of maps ``[B, C, H, W]``, shallow to deep."""
        adapted = [adapter(x) for adapter, x in zip(self.adapters, student, strict=True)]
        pairs = list(zip(adapted, teacher, strict=True))
        pairs.append((adapted[-1].mean((2, 3)), teacher[-1].float().mean((2, 3))))
        return torch.stack([_relative_error(own, theirs) for own, theirs in pairs]).mean()


def _relative_error(own: Tensor, theirs: Tensor) -> Tensor:
    """Squared error over the variance about each channel's mean."""
    own, theirs = own.float(), theirs.float()
    over = [dim for dim in range(theirs.ndim) if dim != 1]
    variance = theirs.var(over, correction=0).mean()
    return (own - theirs).square().mean() / variance.clamp_min(1e-6)
