"""Fresh views for a student, made by worker processes while it trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nima_client.preprocess import PreprocessSpec
from nima_training.distill.config import ViewConfig
from nima_training.distill.views import training_view


class Views(Dataset[np.ndarray]):
    """Item ``n`` is the training view of that number, uint8 ``[S, S, 3]``."""

    def __init__(
        self, photos: Sequence[Path], spec: PreprocessSpec, config: ViewConfig, seed: int
    ) -> None:
        self.photos, self.spec, self.config, self.seed = photos, spec, config, seed

    def __getitem__(self, number: int) -> np.ndarray:
        view = training_view(self.photos, number, self.spec, self.config, self.seed)
        return view if view.flags.writeable else view.copy()  # torch warns of read-only arrays


def at_size(spec: PreprocessSpec, size: int) -> PreprocessSpec:
    """``spec`` with the whole picture stretched to ``size`` pixels a side."""
    return replace(spec, resize_size=size, crop_size=size)


def batches(views: Views, numbers: range, batch_size: int, workers: int) -> Iterator[Tensor]:
    """Views ``numbers`` in order, uint8 ``[batch_size, S, S, 3]``; an incomplete batch is dropped.

    A view follows from its number alone, so a run resumes by starting the range further on.
    """
    return iter(
        DataLoader(
            views, batch_size, sampler=numbers, num_workers=workers, drop_last=True,
            prefetch_factor=4 if workers else None,
            multiprocessing_context="spawn" if workers else None,
        )
    )  # fmt: skip
