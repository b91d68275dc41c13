"""Inception v3 (Szegedy et al., 2016) as Keras computes it.

torchvision's network has the same layers but for one thing: its 3x3 average pools count the zero
padding as pixels, TensorFlow's do not. Weights trained with the one come out differently with the
other along every border, so imported Keras weights get this variant; parameter names are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models import Inception3, inception_v3
from torchvision.models.inception import BasicConv2d


class _PooledConvolution(BasicConv2d):
    """The 1x1 convolution behind an average pool, which first takes the padding out of it."""

    def forward(self, x: Tensor) -> Tensor:
        """What the convolution gives on ``avg_pool2d(..., count_include_pad=False)``."""
        inside = nn.functional.avg_pool2d(torch.ones_like(x[:1, :1]), 3, stride=1, padding=1)
        pooled: Tensor = super().forward(x / inside)
        return pooled


def inception_v3_keras(weights: None = None, **options: bool) -> Inception3:
    """Torchvision's ``inception_v3`` with average pools that leave the padding out."""
    model = inception_v3(weights=weights, **options)
    for block in model.children():
        if hasattr(block, "branch_pool"):
            conv = block.branch_pool.conv
            block.branch_pool = _PooledConvolution(
                conv.in_channels, conv.out_channels, kernel_size=1
            )
    return model
