"""How closely a student follows its teacher, set by set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nima_client.preprocess import PreprocessSpec
from nima_training import distribution, metrics
from nima_training.distill.teacher import TFLiteTeacher
from nima_training.distill.views import test_views
from nima_training.folded import with_folded_norms
from nima_training.inference import predict
from nima_training.losses import emd


class HeldOut:
    """Held-out views with teacher labels, by set name."""

    def __init__(
        self, photos: Sequence[Path], teacher: TFLiteTeacher, spec: PreprocessSpec, seed: int
    ) -> None:
        named = [
            view
            for number, path in enumerate(photos)
            for view in test_views(path, number, spec, seed)
        ]
        self.spec = spec
        self.sets = np.array([name for name, _ in named])
        self.pixels = np.stack([pixels for _, pixels in named])
        self.labels = torch.from_numpy(teacher(self.pixels))

    def measure(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """:func:`agreement` of each set and of all."""
        predicted = predict(with_folded_norms(model), self.pixels, self.spec)
        result = {}
        for name in [*dict.fromkeys(self.sets.tolist()), "all"]:
            rows = torch.from_numpy((self.sets == name) | (name == "all"))
            result[name] = agreement(predicted[rows], self.labels[rows])
        return result


def agreement(predicted: Tensor, target: Tensor) -> dict[str, float]:
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
    return {name: round(value, 5) for name, value in values.items()}


def agreement_line(part: str, values: dict[str, float]) -> str:
    """One line of text for the figures of one held-out set."""
    return (
        f"held-out {part}, {values['views']:.0f} views: Spearman {values['spearman_mean']:.4f}, "
        f"MAE {values['mae_mean']:.4f}, EMD r=2 {values['emd_r2']:.4f}, r=1 {values['emd_r1']:.4f}"
    )
