"""Weights that lose nothing when an engine rounds them to FP16.

MobileNet v1 as published has depthwise filters with weights up to 33 that nearly cancel: rounding
each to the nearest FP16 number moves mean ratings by up to 0.016. So weights are rounded here,
once, and with a choice, up or down, such that the errors of one output cancel for the mean input
(adaptive rounding: Nagel et al., "Up or down?", 2020). What is stored then is exact in FP16.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nima_training.folded import conv_norm_pairs, folded_weights, set_folded

FLIPS = 8


@torch.no_grad()
def round_to_half(model: nn.Module, images: Tensor) -> None:
    """Fold the batch norms of ``model`` and round weights and biases to FP16 values, in place.

    Args:
        model: convolutions, each with a batch norm behind it, and linear layers; in eval mode.
        images: normalised ``[B, 3, S, S]``, on which the mean inputs are taken.
    """
    means: dict[nn.Module, Tensor] = {}

    def collect(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        total = x.mean((0, 2, 3)) if x.dim() == 4 else x.mean(0)
        means[module] = means.get(module, torch.zeros_like(total)) + total / batches

    parts = images.split(32)
    batches = len(parts)
    pairs = conv_norm_pairs(model)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    hooks = [m.register_forward_pre_hook(collect) for m in [*(c for c, _ in pairs), *linears]]
    for part in parts:
        model(part)
    for hook in hooks:
        hook.remove()
    for conv, norm in pairs:
        weight, bias = folded_weights(conv, norm)
        inputs = means[conv].view(conv.groups, -1)  # [groups, channels in a group]
        rows = inputs.repeat_interleave(len(weight) // conv.groups, 0)
        rows = rows[:, :, None].expand(-1, -1, weight[0, 0].numel()).flatten(1)
        rounded, bias = rounded_rows(weight.flatten(1), bias, rows)
        set_folded(conv, norm, rounded.view_as(weight), bias)
    for linear in linears:
        rows = means[linear].expand_as(linear.weight)
        weight, bias = rounded_rows(linear.weight, linear.bias, rows)
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)


def rounded_rows(weight: Tensor, bias: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """FP16 values near ``weight`` ``[N, C]`` and ``bias`` ``[N]`` that answer ``inputs`` the same.

    Each row starts at the nearest values; then single weights are moved to the neighbour on the
    other side of their true value while that brings ``weight @ inputs + bias`` nearer.

    Args:
        weight: FP32 ``[N, C]``.
        bias: FP32 ``[N]``.
        inputs: mean inputs FP32 ``[N, C]`` of each row.
    """
    exact = torch.cat([weight, bias[:, None]], 1).double()
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], 1).double()
    near = exact.half()
    up = near.double() < exact
    infinity = torch.full_like(near, torch.inf)
    other = torch.nextafter(near, torch.where(up, infinity, -infinity)).double()
    value = near.double()
    moves = (other - value) * inputs
    rows = torch.arange(len(value))
    for _ in range(FLIPS):
        error = ((value - exact) * inputs).sum(1, keepdim=True)
        after = (error + moves).abs()
        best = after.argmin(1)
        better = after[rows, best] < error.abs().squeeze(1)
        chosen = rows[better], best[better]
        value[chosen] = other[chosen]
        moves[chosen] = torch.inf  # each weight moves once at most
    return value[:, :-1].float(), value[:, -1].float()
