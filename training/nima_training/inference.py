"""Distributions for files and pixels: what evaluation, analysis, import and distillation run.

Preprocessing is :mod:`nima_client.preprocess`, the code the server runs; batches hold no
randomness, so a photo has one score.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nima_client.preprocess import ImageRejected, PreprocessSpec, normalize, preprocess
from nima_training import distribution

BATCH = 32


def network_input(pixels: np.ndarray, spec: PreprocessSpec) -> Tensor:
    """uint8 ``[B, S, S, 3]`` to normalised FP32 ``[B, 3, S, S]``, stored channels last."""
    return torch.from_numpy(normalize(pixels, spec)).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def predict(
    model: nn.Module, pixels: np.ndarray, spec: PreprocessSpec, batch: int = BATCH
) -> Tensor:
    """Distributions FP32 ``[N, 10]`` on the CPU for uint8 pixels ``[N, S, S, 3]``."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    parts = [
        distribution.probabilities(
            model(network_input(pixels[start : start + batch], spec).to(device))
        ).cpu()
        for start in range(0, len(pixels), batch)
    ]
    model.train(training)
    return torch.cat(parts)


def predict_files(
    model: nn.Module, paths: Sequence[Path], spec: PreprocessSpec, batch: int = BATCH
) -> tuple[Tensor, list[int], dict[int, str]]:
    """Distributions of image files.

    Returns:
        Distributions ``[G, 10]`` of the readable files, their indexes into ``paths``, and the
        reason for each unreadable index.
    """
    parts: list[Tensor] = []
    good: list[int] = []
    failures: dict[int, str] = {}
    for chunk in _chunks(range(len(paths)), batch):
        pixels = []
        for index in chunk:
            try:
                pixels.append(preprocess(paths[index].read_bytes(), spec))
                good.append(index)
            except (ImageRejected, OSError) as error:
                failures[index] = str(error)
        if pixels:
            parts.append(predict(model, np.stack(pixels), spec, batch))
    empty = torch.zeros((0, distribution.NUM_RATINGS))
    return (torch.cat(parts) if parts else empty), good, failures


def _chunks(items: range, size: int) -> Iterable[range]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
