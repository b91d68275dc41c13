"""How closely a student follows its teacher, set by set."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nima_client.preprocess import PreprocessSpec
from nima_training import distribution, metrics
from nima_training.distill.teacher import TFLiteTeacher
from nima_training.distill.views import test_views
from nima_training.folded import with_folded_norms
from nima_training.inference import BATCH, predict
from nima_training.losses import emd

Figures = dict[str, float | None]
"""The figures of one set; None where undefined (a correlation of one view): JSON has no NaN."""


class HeldOut:
    """Held-out views with teacher labels, by set name; kept to be measured on again and again."""

    def __init__(
        self, photos: Sequence[Path], teacher: TFLiteTeacher, spec: PreprocessSpec, seed: int
    ) -> None:
        named = list(_views(photos, spec, seed))
        self.spec = spec
        self.sets = [name for name, _ in named]
        self.pixels = np.stack([pixels for _, pixels in named])
        self.labels = torch.from_numpy(teacher(self.pixels))

    def measure(self, model: nn.Module) -> dict[str, Figures]:
        """:func:`agreement` of each set and of all."""
        predicted = predict(with_folded_norms(model), self.pixels, self.spec)
        return _by_set(self.sets, predicted, self.labels)


def measure_once(
    model: nn.Module,
    photos: Sequence[Path],
    teacher: TFLiteTeacher,
    spec: PreprocessSpec,
    seed: int,
) -> dict[str, Figures]:
    """What :meth:`HeldOut.measure` gives, with one batch of views in memory, however many."""
    folded = with_folded_norms(model)
    views = _views(photos, spec, seed)
    sets: list[str] = []
    predicted, labels = [], []
    while batch := list(itertools.islice(views, BATCH)):
        pixels = np.stack([view for _, view in batch])
        sets += [name for name, _ in batch]
        predicted.append(predict(folded, pixels, spec))
        labels.append(torch.from_numpy(teacher(pixels)))
    return _by_set(sets, torch.cat(predicted), torch.cat(labels))


def _views(
    photos: Sequence[Path], spec: PreprocessSpec, seed: int
) -> Iterator[tuple[str, np.ndarray]]:
    for number, path in enumerate(photos):
        yield from test_views(path, number, spec, seed)


def _by_set(sets: list[str], predicted: Tensor, labels: Tensor) -> dict[str, Figures]:
    result = {}
    for name in [*dict.fromkeys(sets), "all"]:
        rows = torch.tensor([name in (own, "all") for own in sets])
        result[name] = agreement(predicted[rows], labels[rows])
    return result


def agreement(predicted: Tensor, target: Tensor) -> Figures:
    """Correlations and errors of mean and std, and EMD, of distributions ``[N, 10]``."""
    mean, target_mean = distribution.mean(predicted).numpy(), distribution.mean(target).numpy()
    std, target_std = distribution.std(predicted).numpy(), distribution.std(target).numpy()
    error = np.abs(mean - target_mean)
    values = {
        "views": float(len(mean)),
        "spearman_mean": metrics.spearman(mean, target_mean),
        "pearson_mean": metrics.pearson(mean, target_mean),
        "mae_mean": float(error.mean()),
        "p95_error_mean": float(np.percentile(error, 95)),
        "max_error_mean": float(error.max()),
        "spearman_std": metrics.spearman(std, target_std),
        "mae_std": float(np.abs(std - target_std).mean()),
        "emd_r1": float(emd(predicted, target, 1).mean()),
        "emd_r2": float(emd(predicted, target, 2).mean()),
    }
    return {
        name: round(value, 5) if math.isfinite(value) else None for name, value in values.items()
    }


def agreement_line(part: str, values: Figures) -> str:
    """One line of text for the figures of one held-out set."""
    shown = {name: "undefined" if v is None else f"{v:.4f}" for name, v in values.items()}
    return (
        f"{part}, {values['views']:.0f} views: Spearman {shown['spearman_mean']}, "
        f"MAE {shown['mae_mean']}, EMD r=2 {shown['emd_r2']}, r=1 {shown['emd_r1']}"
    )
