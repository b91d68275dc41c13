"""Moments of rating distributions.

A rating distribution is a vector of ten probabilities for the ratings 1..10 (Murray et al., AVA,
CVPR 2012); the score is its mean, the spread its standard deviation ``sqrt(E[(x - mean)^2])``.
All functions accept tensors of shape ``[..., 10]`` and reduce the last dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUM_RATINGS = 10


def ratings(like: Tensor) -> Tensor:
    """The ratings 1..10 as a tensor ``[10]`` with the dtype and device of ``like``."""
    return torch.arange(1, NUM_RATINGS + 1, dtype=like.dtype, device=like.device)


def probabilities(logits: Tensor) -> Tensor:
    """Softmax over the last dimension, computed in FP32 whatever the dtype of ``logits``."""
    return torch.softmax(logits.float(), dim=-1)


def mean(distribution: Tensor) -> Tensor:
    """Mean rating in [1, 10], shape ``[...]``."""
    return (distribution * ratings(distribution)).sum(dim=-1)


def std(distribution: Tensor) -> Tensor:
    """Standard deviation of the ratings, shape ``[...]``.

    Centred before squaring: ``E[x^2] - mean^2`` loses digits in FP32 when the spread is small.
    """
    deviation = ratings(distribution) - mean(distribution).unsqueeze(-1)
    variance = (distribution * deviation.square()).sum(dim=-1)
    return variance.clamp_min(0).sqrt()
