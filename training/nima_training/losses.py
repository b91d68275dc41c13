"""Earth mover's distance between rating distributions.

Talebi & Milanfar (2017), equation 1::

    EMD(p, q) = (1/N * sum_k |CDF_p(k) - CDF_q(k)|^r)^(1/r)

The paper trains with r = 2 (the seed article calls that exponent gamma) and reports r = 1. With
r = 1, ``N * EMD`` is the Wasserstein distance of the ratings 1..N. Losses are batch means.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nima_training.distribution import mean as mean_rating
from nima_training.distribution import probabilities


def emd(predicted: Tensor, target: Tensor, r: float = 2.0) -> Tensor:
    """EMD of each pair of distributions.

    Args:
        predicted: probabilities ``[..., N]``, sum 1.
        target: probabilities ``[..., N]``, sum 1.
        r: exponent, at least 1.

    Returns:
        ``[...]``, in [0, 1].
    """
    if r < 1:
        raise ValueError(f"EMD needs r >= 1, got {r}")
    if predicted.shape != target.shape:
        raise ValueError(f"shapes differ: {tuple(predicted.shape)} and {tuple(target.shape)}")
    difference = (torch.cumsum(predicted, -1) - torch.cumsum(target, -1)).abs()
    if r == 1:
        return difference.mean(-1)
    # Relative to the largest, since small differences to a high power vanish. The root's slope is
    # infinite at 0: a perfect prediction would give NaN gradients.
    largest = difference.detach().amax(-1, keepdim=True).clamp_min(1e-6)
    relative = (difference / largest).pow(r).mean(-1).clamp_min(1e-12)
    return largest.squeeze(-1) * relative.pow(1 / r)


class EMDLoss(nn.Module):
    """Mean EMD of a batch, from logits ``[B, N]`` and target probabilities ``[B, N]``."""

    def __init__(self, r: float = 2.0) -> None:
        super().__init__()
        self.r = r

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The scalar loss, in FP32."""
        return emd(probabilities(logits), target.float(), self.r).mean()


class DistillationLoss(nn.Module):
    """Kullback-Leibler divergence from the teacher, plus the squared error of the mean.

    The divergence (Hinton et al., 2015) matches the whole distribution; the second term, weighted
    by ``mean_weight``, puts the gradient where the published figure is read: on the mean rating.
    """

    def __init__(self, mean_weight: float = 0.5) -> None:
        super().__init__()
        self.mean_weight = mean_weight

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The scalar loss for logits ``[B, N]`` and teacher probabilities ``[B, N]``."""
        target = target.float()
        log_predicted = torch.log_softmax(logits.float(), dim=-1)
        divergence = nn.functional.kl_div(log_predicted, target, reduction="batchmean")
        error = mean_rating(log_predicted.exp()) - mean_rating(target)
        return divergence + self.mean_weight * error.square().mean()
