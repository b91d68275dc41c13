"""The distillation loss: the student's feature maps and ratings against its teacher's.

As a pruned student keeps some of its teacher's channels, each of its maps can be held to the
teacher's map of the same channels without an adapter between them (hints: Romero et al., FitNets,
2015). Every place of a map is a target, where the ratings give only ten numbers a photo.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from nima_training.distribution import probabilities
from nima_training.folded import with_folded_norms
from nima_training.losses import DistillationLoss
from nima_training.mobilenet_v1 import MobileNetV1

TAPS = (7, 9, 11, 12, 13)
"""Parts of ``features`` whose outputs are hints."""


def maps_and_logits(
    network: MobileNetV1, x: Tensor, frozen_parts: int = 0
) -> tuple[list[Tensor], Tensor]:
    """The maps at :data:`TAPS` and the logits; the first parts are computed without gradients."""
    maps = []
    gradients = torch.is_grad_enabled()
    for part, block in enumerate(network.features):
        with torch.set_grad_enabled(gradients and part >= frozen_parts):
            x = block(x)
        if part in TAPS:
            maps.append(x)
    return maps, network.classifier(x.mean((2, 3)))


class Matching:
    """``loss(x)`` of a student for normalised images, its teacher computed on the spot."""

    def __init__(
        self,
        teacher: MobileNetV1,
        student: MobileNetV1,
        kept: Sequence[Tensor],
        mean_weight: float,
        hint_weight: float,
        images: Tensor,
    ) -> None:
        """
        Args:
            teacher: the network that the student was pruned from, in eval mode.
            student: trained in place; its batch norms keep their statistics.
            kept: the teacher's channels in each part of the student.
            mean_weight: of the squared error of the mean, beside the divergence.
            hint_weight: of the mean of the maps' squared errors, each relative to its variance.
            images: normalised ``[B, 3, S, S]``, on which those variances are taken.
        """
        self.teacher = _folded(teacher)
        self.student = _folded(student)
        self.kept = [kept[part].to(images.device) for part in TAPS]
        self.hint_weight = hint_weight
        self.divergence = DistillationLoss(mean_weight)
        with torch.no_grad():
            maps, _ = self._target(images)
        self.variances = [float(m.var(dim=(0, 2, 3)).mean()) + 1e-6 for m in maps]

    def _target(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        maps, logits = maps_and_logits(self.teacher, x)
        chosen = [m[:, own].float() for m, own in zip(maps, self.kept, strict=True)]
        return chosen, probabilities(logits.float())

    def loss(self, x: Tensor, frozen_parts: int) -> Tensor:
        """Scalar FP32 loss; convolutions run in bfloat16."""
        with torch.autocast(x.device.type, torch.bfloat16):
            with torch.no_grad():
                targets, ratings = self._target(x)
            maps, logits = maps_and_logits(self.student, x, frozen_parts)
        errors = [
            (own.float() - target).square().mean() / variance
            for own, target, variance in zip(maps, targets, self.variances, strict=True)
        ]
        hints = torch.stack(errors).mean()
        value: Tensor = self.divergence(logits.float(), ratings) + self.hint_weight * hints
        return value


def _folded(network: MobileNetV1) -> MobileNetV1:
    folded = with_folded_norms(network)
    assert isinstance(folded, MobileNetV1)
    return folded


def varied(x: Tensor, size: int | None, mixed: float, rng: np.random.Generator) -> Tensor:
    """A batch ``[B, 3, S, S]`` mirrored, resized and mixed with itself, a new one every time.

    The teacher answers to whatever the student is shown, so mixing needs no labels ("function
    matching", Beyer et al., 2022): blends (mixup, Zhang et al., 2018) or spliced windows (CutMix,
    Yun et al., 2019).
    """
    if rng.random() < 0.5:
        x = x.flip(3)
    if size is not None and size != x.shape[-1]:
        x = nn.functional.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
    if rng.random() >= mixed:
        return x.contiguous(memory_format=torch.channels_last)
    other = x.flip(0)
    if rng.random() < 0.5:
        x = torch.lerp(x, other, float(rng.uniform(0.3, 0.7)))
    else:
        side = x.shape[-1]
        height, width = (int(v) for v in rng.integers(side // 4, 3 * side // 4, 2))
        top, left = int(rng.integers(0, side - height)), int(rng.integers(0, side - width))
        window = (..., slice(top, top + height), slice(left, left + width))
        x = x.clone()
        x[window] = other[window]
    return x.contiguous(memory_format=torch.channels_last)
