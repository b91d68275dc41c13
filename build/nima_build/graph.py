"""The graph that is served: pixels in, rating distribution and its moments out (needs torch).

One module holds the whole of what ``nima_network`` computes, so that every runtime (PyTorch in the
parity gate, ONNX Runtime, TensorRT) gets the same definition of it.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn
from torch.fx.experimental.optimization import fuse

from nima_build.metadata import ArtefactError, ModelMetadata
from nima_client.contract import RATINGS
from nima_client.preprocess import PreprocessSpec
from nima_training.checkpoint import Checkpoint, load_checkpoint


class ScoringGraph(nn.Module):
    """Cast, normalise, network, softmax and moments in one module.

    Input: ``pixels`` uint8 ``[B, S, S, 3]``, RGB. Outputs, FP32: ``distribution`` ``[B, 10]``
    (sums to 1), ``mean`` ``[B, 1]`` (1..10), ``std`` ``[B, 1]`` (0..4.5).

    The Cast is the first operation because TensorRT parses a UINT8 input only then. The shift
    ``pixels - 255 * mean`` stays apart from the scale: for a mean of 0.5 it is exact in FP16 too.

    Args:
        network: normalised FP32 NCHW images to logits ``[B, 10]``; copied, not changed.
        spec: gives the normalisation.
        fold: fold each BatchNorm into the convolution before it.
    """

    shift: torch.Tensor
    scale: torch.Tensor
    ratings: torch.Tensor

    def __init__(self, network: nn.Module, spec: PreprocessSpec, *, fold: bool = True) -> None:
        super().__init__()
        network = copy.deepcopy(network).eval()
        self.network = _fold_batch_norm(network) if fold else network
        mean = torch.tensor(spec.mean, dtype=torch.float64).reshape(1, 3, 1, 1)
        std = torch.tensor(spec.std, dtype=torch.float64).reshape(1, 3, 1, 1)
        self.register_buffer("shift", (255.0 * mean).float())
        self.register_buffer("scale", (1.0 / (255.0 * std)).float())
        self.register_buffer("ratings", torch.tensor([RATINGS], dtype=torch.float32))
        self.requires_grad_(False).eval()

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Score a batch; see the class for shapes."""
        return self.scores(self.network(self.normalized(pixels)))

    def normalized(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the network sees: FP32 ``[B, 3, S, S]``."""
        images = pixels.float().permute(0, 3, 1, 2)
        return (images - self.shift) * self.scale

    def scores(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Distribution, mean and standard deviation of logits ``[B, 10]``."""
        distribution = torch.softmax(logits, dim=1)
        mean = (distribution * self.ratings).sum(dim=1, keepdim=True)
        # E[(x - mean)^2] is a sum of non-negative terms; E[x^2] - mean^2 can fall below 0 and
        # make the square root NaN.
        variance = (distribution * (self.ratings - mean).square()).sum(dim=1, keepdim=True)
        return distribution, mean, variance.sqrt()


class HalfScoringGraph(nn.Module):
    """:class:`ScoringGraph` with its network in half precision and channels last, for PyTorch.

    Pixels are normalised in FP32 before they are rounded; softmax and moments are FP32. The outputs
    are one tensor, so that they reach the CPU in one copy.

    Input: ``pixels`` uint8 ``[B, S, S, 3]``, RGB. Output: FP32 ``[B, 12]``, the distribution (10),
    the mean and the standard deviation side by side.

    Args:
        network: as for :class:`ScoringGraph`; copied, not changed.
        spec: gives the normalisation.
        dtype: of the network's weights and activations.
    """

    def __init__(
        self, network: nn.Module, spec: PreprocessSpec, *, dtype: torch.dtype = torch.float16
    ) -> None:
        super().__init__()
        self.scoring = ScoringGraph(network, spec)
        self.scoring.network.to(dtype).to(memory_format=torch.channels_last)
        self.dtype = dtype

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch; see the class for shapes."""
        images = self.scoring.normalized(pixels).to(self.dtype)
        return torch.cat(self.scoring.scores(self.scoring.network(images).float()), dim=1)


def load_exported(checkpoint: Path, metadata: ModelMetadata) -> Checkpoint:
    """The checkpoint that a ``model.onnx`` was exported from.

    Args:
        checkpoint: its folder.
        metadata: of the graph.

    Raises:
        ArtefactError: there is no such checkpoint, or it has other weights.
    """
    try:
        loaded = load_checkpoint(checkpoint)
    except ValueError as error:
        raise ArtefactError(str(error)) from None
    if loaded.meta["weights_sha256"] != metadata.checkpoint_sha256:
        raise ArtefactError(f"model.onnx was exported from another checkpoint than {checkpoint}")
    return loaded


def _fold_batch_norm(network: nn.Module) -> nn.Module:
    """The network with BatchNorm folded; one that torch.fx cannot trace is returned as it is."""
    try:
        return fuse(network)
    except (torch.fx.proxy.TraceError, NotImplementedError, TypeError):
        return network
