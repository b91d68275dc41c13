"""Scoring the validation split, over all processes of a run."""

from __future__ import annotations

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader

from nima_training.config import TrainConfig
from nima_training.data.dataset import Photos, collate, normalise_on_device
from nima_training.distribution import probabilities
from nima_training.processes import share_buffers


@torch.inference_mode()
def predict_split(
    model: nn.Module, photos: Photos, config: TrainConfig, accelerator: Accelerator
) -> tuple[np.ndarray, list[int], list[tuple[int, str]]]:
    """Distributions of the readable photos, the same on every process.

    Args:
        model: put into eval mode, with the buffers of process 0, which are those that are saved.
        photos: without augmentation; process ``r`` of ``n`` scores rows ``r``, ``r + n``, …
        config: batch size, workers and preprocessing.
        accelerator: device, precision and the other processes.

    Returns:
        Probabilities FP64 ``[G, 10]`` and the row numbers they belong to, ascending; and the row
        and the reason of each photo that this process could not read.
    """
    model.eval()
    share_buffers(model)
    rank, ranks = accelerator.process_index, accelerator.num_processes
    loader = DataLoader(
        photos, batch_size=config.batch_size, sampler=range(rank, len(photos), ranks),
        collate_fn=collate, num_workers=config.workers,
    )  # fmt: skip
    found: list[tuple[int, list[float]]] = []
    errors: list[tuple[int, str]] = []
    for batch in loader:
        errors += batch["errors"]
        if "pixels" in batch:
            x = normalise_on_device(batch["pixels"].to(accelerator.device), config.preprocessing)
            with accelerator.autocast():
                logits = model(x)
            p = probabilities(logits).cpu().double().numpy()
            found += list(zip(batch["rows"], p.tolist(), strict=True))
    found = sorted(gather_object(found) if ranks > 1 else found)
    return np.array([p for _, p in found]).reshape(-1, 10), [row for row, _ in found], errors
