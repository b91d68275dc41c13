"""A smaller MobileNet v1 cut out of a trained one: channels removed, the rest fitted again.

Which channels go is decided as in Optimal Brain Surgeon (Hassibi & Stork, 1993), applied to the
input channels of each pointwise convolution: the channel is removed whose loss the remaining ones,
refitted, make up for best (channel pruning by reconstruction: He et al., 2017; ThiNet, Luo et al.,
2017). Errors of different layers are made comparable by the squared gradient of the mean rating,
and channels are removed where they cost the least accuracy for each multiply-add that they save.
What stays is fitted again by :mod:`nima_training.distill.refit`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nima_training import distribution
from nima_training.distill.refit import before_clamp, fit
from nima_training.folded import calibrate_batch_norm, conv_norm_pairs, folded_weights
from nima_training.mobilenet_v1 import WIDTHS, MobileNetV1, multiply_adds

STEP = 16
"""Channels are removed in groups of so many: what vector units work on at once."""
MIN_SHARE = 3 / 8
"""No part loses more: the estimate of what removal costs holds for small changes only."""
MEASURE_IMAGES = 256
DAMPING = 1e-4


@dataclass(frozen=True)
class Pruned:
    """The smaller network in eval mode, and the teacher's channels that each part kept."""

    model: MobileNetV1
    kept: list[Tensor]


@dataclass(frozen=True)
class Moments:
    """What pruning needs to know of a network's activations.

    ``inputs[i]``: covariance ``[C, C]`` of what enters the i-th pointwise convolution, the last one
    that of the pooled features, which enter the head. ``sensitivity[i]``: mean over photos of the
    squared gradient of the mean rating, summed over places, for each output channel of it.
    """

    inputs: list[Tensor]
    sensitivity: list[Tensor]


def prune(teacher: MobileNetV1, images: Tensor, budget: float) -> Pruned:
    """Cut ``teacher`` down to ``budget`` multiply-adds.

    Args:
        teacher: as imported, of the published widths, in eval mode.
        images: normalised FP32 ``[B, 3, S, S]``, of what the network will see. The first
            :data:`MEASURE_IMAGES` decide which channels go, all of them fit what stays: the more
            the better, at 10 MB each of memory.
        budget: multiply-adds of the convolutions at 224 x 224.

    Raises:
        ValueError: the budget is more than the teacher needs, or less than any network can have.
    """
    if budget >= multiply_adds(teacher.widths):
        raise ValueError(
            f"the teacher needs {multiply_adds(teacher.widths) / 1e6:.0f} million multiply-adds: "
            f"a budget of {budget / 1e6:.0f} prunes nothing"
        )
    batches = images.split(16)
    moments = measure(teacher, images[:MEASURE_IMAGES].split(16))
    orders, costs = [], []
    for part, covariance in enumerate(moments.inputs):
        order, cost = elimination(covariance, _readers(teacher, part, moments))
        orders.append(order)
        costs.append(cost)
    widths = choose_widths(costs, teacher.widths, budget)
    kept = []
    for order, full, width in zip(orders, teacher.widths, widths, strict=True):
        gone = set(order[: full - width])
        kept.append(torch.tensor([channel for channel in range(full) if channel not in gone]))
    model = MobileNetV1(dropout=0.0, widths=widths).eval()
    fit(teacher, model, kept, batches)
    calibrate_batch_norm(model, batches)
    return Pruned(model, kept)


@torch.no_grad()
def _readers(teacher: MobileNetV1, part: int, moments: Moments) -> Tensor:
    """The weights ``[rows, C]`` that read the channels of ``part``, rows scaled by sensitivity."""
    if part == len(WIDTHS) - 1:
        linear = teacher.classifier.get_submodule("1").weight
        assert isinstance(linear, Tensor)
        return (linear - linear.mean(0)).double()  # softmax doesn't see a common shift
    pointwise = conv_norm_pairs(teacher)[2 + 2 * part]
    weight = folded_weights(*pointwise)[0].flatten(1).double()
    return weight * moments.sensitivity[part].sqrt()[:, None]


def measure(network: MobileNetV1, batches: Sequence[Tensor]) -> Moments:
    """The moments of ``network``, in eval mode, on ``batches``."""
    parts = len(WIDTHS)
    products: list[Tensor] = [torch.zeros(()) for _ in range(parts)]
    sums: list[Tensor] = [torch.zeros(()) for _ in range(parts)]
    counts = [0] * parts
    squares: list[Tensor] = [torch.zeros(()) for _ in range(parts - 1)]
    photos = sum(len(batch) for batch in batches)
    for batch in batches:
        inputs, outputs = [], []
        x = network.features[0](batch.clone().requires_grad_())
        for block in network.features[1:]:
            assert isinstance(block, nn.Sequential)
            inputs.append(block[0](x))
            y = before_clamp(block[1], inputs[-1])
            y.retain_grad()
            outputs.append(y)
            x = y.clamp(0, 6)
        pooled = x.mean((2, 3))
        inputs.append(pooled[:, :, None, None])
        logits = network.classifier(pooled)
        distribution.mean(distribution.probabilities(logits)).sum().backward()
        for i, y in enumerate(outputs):
            assert y.grad is not None
            squares[i] = squares[i] + y.grad.double().square().sum((0, 2, 3))
        with torch.no_grad():
            for i, value in enumerate(inputs):
                rows = value.permute(0, 2, 3, 1).flatten(0, 2).double()
                products[i] = products[i] + rows.T @ rows
                sums[i] = sums[i] + rows.sum(0)
                counts[i] += len(rows)
    covariances = []
    for product, total, count in zip(products, sums, counts, strict=True):
        mean = total / count
        covariances.append(product / count - torch.outer(mean, mean))
    network.zero_grad(set_to_none=True)
    return Moments(covariances, [square / photos for square in squares])


def elimination(covariance: Tensor, readers: Tensor) -> tuple[list[int], list[float]]:
    """The order in which channels are best removed, and what the removals have cost by then.

    Args:
        covariance: ``[C, C]`` of the channels.
        readers: ``[rows, C]`` weights that read them.

    Returns:
        The channels to remove, first removed first, all but :data:`MIN_SHARE`; and, from none
        removed on, the squared error of the readers' outputs, the remaining weights refitted.
    """
    channels = len(covariance)
    damping = DAMPING * covariance.diagonal().mean()
    inverse = torch.linalg.inv(covariance + damping * torch.eye(channels, dtype=torch.float64))
    weights = readers.clone()
    alive = torch.ones(channels, dtype=torch.bool)
    order, cost = [], [0.0]
    for _ in range(channels - max(STEP, math.ceil(MIN_SHARE * channels))):
        loss = weights.square().sum(0) / inverse.diagonal()
        worst = int(loss.masked_fill(~alive, torch.inf).argmin())
        cost.append(cost[-1] + float(loss[worst]))
        order.append(worst)
        alive[worst] = False
        row = inverse[worst] / inverse[worst, worst]
        weights -= torch.outer(weights[:, worst], row)
        inverse -= torch.outer(inverse[:, worst], row)
        inverse[worst, worst] = 1.0
    return order, cost


def choose_widths(
    costs: Sequence[Sequence[float]], full: Sequence[int], budget: float
) -> list[int]:
    """Remove :data:`STEP` channels where it costs least for what it saves, down to ``budget``.

    Args:
        costs: of each part, after 0, 1, 2 … removals.
        full: channels of each part before.
        budget: multiply-adds at 224 x 224.

    Raises:
        ValueError: not even all removals that have a cost come down to it.
    """
    widths = list(full)
    while (now := multiply_adds(widths)) > budget:
        best: tuple[float, int] | None = None
        for part, cost in enumerate(costs):
            removed = full[part] - widths[part]
            if removed + STEP >= len(cost):
                continue
            fewer = [*widths[:part], widths[part] - STEP, *widths[part + 1 :]]
            price = (cost[removed + STEP] - cost[removed]) / (now - multiply_adds(fewer))
            if best is None or price < best[0]:
                best = price, part
        if best is None:
            raise ValueError(
                f"a budget of {budget / 1e6:.0f} million multiply-adds is too small: pruning stops "
                f"at {now / 1e6:.0f}"
            )
        widths[best[1]] -= STEP
    return widths
