"""Distributions for files and pixels: what evaluation, analysis, import and distillation run.

Preprocessing is :mod:`nima_client.preprocess`, the code the server runs; batches hold no
randomness, so a photo has one score.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nima_client._os_errors import reason
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
    model: nn.Module,
    paths: Sequence[Path],
    spec: PreprocessSpec,
    batch: int = BATCH,
    workers: int = 1,
) -> tuple[Tensor, list[int], dict[int, str]]:
    """Distributions of image files.

    Args:
        model: maps normalised images to logits, on any device.
        paths: the files.
        spec: preprocessing of the model.
        batch: images a forward pass.
        workers: threads that decode the next batch meanwhile; the decoders release the GIL.

    Returns:
        Distributions ``[G, 10]`` of the readable files, their indexes into ``paths``, and the
        reason for each unreadable index.
    """

    def load(path: Path) -> np.ndarray | str:
        try:
            return preprocess(path.read_bytes(), spec)
        except (ImageRejected, OSError) as error:
            return reason(error)

    parts: list[Tensor] = []
    good: list[int] = []
    failures: dict[int, str] = {}
    with ThreadPoolExecutor(workers) as decoders:
        pending = decoders.map(load, paths[:batch])
        for start in range(0, len(paths), batch):
            loaded = list(pending)
            pending = decoders.map(load, paths[start + batch : start + 2 * batch])
            pixels = []
            for index, value in enumerate(loaded, start):
                if isinstance(value, str):
                    failures[index] = value
                else:
                    good.append(index)
                    pixels.append(value)
            if pixels:
                parts.append(predict(model, np.stack(pixels), spec, batch))
    empty = torch.zeros((0, distribution.NUM_RATINGS))
    return (torch.cat(parts) if parts else empty), good, failures
