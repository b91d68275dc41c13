"""A pruned MobileNet v1 fitted to the network it was cut out of, layer by layer.

Each pointwise convolution is a least-squares problem: from what the pruned layers before it give,
to what the original computes there (He et al., 2017, "Channel pruning for accelerating very deep
neural networks", section 3.2). It needs no labels and, as every place of every photo is a sample,
few photos.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nima_training.folded import conv_norm_pairs, folded_weights, set_folded
from nima_training.mobilenet_v1 import MobileNetV1

FIT_SAMPLES = 80_000
RIDGE = 1e-4
HEAD_RIDGE = 3e-2
CLAMP_ROUNDS = 3


def before_clamp(part: nn.Module, x: Tensor) -> Tensor:
    """What a convolution of MobileNetV1 gives before its ReLU6."""
    assert isinstance(part, nn.Sequential)
    return part[:-1](x)  # type: ignore[no-any-return]


@torch.no_grad()
def fit(
    network: MobileNetV1, model: MobileNetV1, kept: Sequence[Tensor], batches: Sequence[Tensor]
) -> None:
    """Fill ``model``: kept filters of ``network``, and refitted pointwise convolutions and head."""
    source, target = conv_norm_pairs(network), conv_norm_pairs(model)
    generator = torch.Generator().manual_seed(0)

    weight, bias = folded_weights(*source[0])
    set_folded(*target[0], weight[kept[0]], bias[kept[0]])
    theirs = [network.features[0](batch) for batch in batches]
    ours = [x[:, kept[0]] for x in theirs]
    for part in range(1, len(kept)):
        block, own = network.features[part], model.features[part]
        assert isinstance(block, nn.Sequential)
        assert isinstance(own, nn.Sequential)
        inputs, outputs = kept[part - 1], kept[part]
        weight, bias = folded_weights(*source[2 * part - 1])
        set_folded(*target[2 * part - 1], weight[inputs], bias[inputs])
        ours = [own[0](x) for x in ours]
        goals = [before_clamp(block[1], block[0](x)) for x in theirs]
        weight, bias = folded_weights(*source[2 * part])
        weight, bias = weight[outputs][:, inputs].flatten(1), bias[outputs]
        x, y = _sample(ours, [goal[:, outputs] for goal in goals], generator)
        weight, bias = _fit_clamped(x, y, weight, bias)
        set_folded(*target[2 * part], weight[:, :, None, None], bias)
        ours = [own[1](x) for x in ours]
        theirs = [goal.clamp_(0, 6) for goal in goals]
    linear = network.classifier.get_submodule("1")
    own_linear = model.classifier.get_submodule("1")
    assert isinstance(linear, nn.Linear)
    assert isinstance(own_linear, nn.Linear)
    logits = torch.cat([linear(x.mean((2, 3))) for x in theirs])
    shift = linear.weight.mean(0)
    weight, bias = _LeastSquares(
        torch.cat([x.mean((2, 3)) for x in ours]),
        (linear.weight - shift)[:, kept[-1]], linear.bias - linear.bias.mean(), HEAD_RIDGE,
    ).solve(logits - logits.mean(1, keepdim=True))  # fmt: skip
    own_linear.weight.copy_(weight)
    own_linear.bias.copy_(bias)


def _sample(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The same random places of maps ``[B, C, H, W]`` and ``[B, K, H, W]``, as rows."""
    count = FIT_SAMPLES // len(inputs)
    xs, ys = [], []
    for x, y in zip(inputs, outputs, strict=True):
        x, y = (v.permute(0, 2, 3, 1).flatten(0, 2) for v in (x, y))
        places = torch.randperm(len(x), generator=generator)[:count]
        xs.append(x[places])
        ys.append(y[places])
    return torch.cat(xs), torch.cat(ys)


class _LeastSquares:
    """Weights that map ``x`` ``[N, C]`` to given outputs best, drawn towards ``start``."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor, ridge: float) -> None:
        ones = torch.ones(len(x), 1, dtype=torch.float64)
        self._x = torch.cat([x.double(), ones], 1)
        gram = self._x.T @ self._x
        self._pull = ridge * gram.diagonal().mean()
        self._start = torch.cat([weight, bias[:, None]], 1).double()
        identity = torch.eye(len(gram), dtype=torch.float64)
        self._factor = torch.linalg.cholesky(gram + self._pull * identity)

    def solve(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Weight ``[K, C]`` and bias ``[K]`` for outputs ``y`` ``[N, K]``."""
        right = self._x.T @ y.double() + self._pull * self._start.T
        solution = torch.cholesky_solve(right, self._factor).T.float()
        return solution[:, :-1], solution[:, -1]


def _fit_clamped(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """As least squares, but ``y`` is seen through ReLU6: beyond 0 and 6 any value does."""
    problem = _LeastSquares(x, weight, bias, RIDGE)
    weight, bias = problem.solve(y)
    for _ in range(CLAMP_ROUNDS):
        now = x @ weight.T + bias
        goal = torch.where(y <= 0, now.clamp(max=0), torch.where(y >= 6, now.clamp(min=6), y))
        weight, bias = problem.solve(goal)
    return weight, bias
