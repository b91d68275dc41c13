"""Everything that decides a distillation run, defaults as for the bundled checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

SPLIT_FRACTIONS = {"train": 0.80, "selection": 0.08, "test": 0.12}


@dataclass(frozen=True)
class ViewConfig:
    """How views of a photo are drawn (:mod:`nima_training.distill.views`)."""

    whole: float = 0.35
    """Share of views that show the whole photo, as serving does."""
    min_area: float = 0.25
    max_aspect_change: float = 1.6
    distortions: tuple[float, ...] = (0.35, 0.40, 0.25)
    """Probability of 0, 1, 2 … distortions in a row."""
    mixed: float = 0.12
    """Share of views that blend or splice two photos; the teacher labels the result."""


@dataclass(frozen=True)
class StageConfig:
    """One training stage. The learning rate warms up, then falls along a cosine to zero."""

    epochs: float
    learning_rate: float
    head_learning_rate: float
    batch_size: int = 64
    frozen_blocks: int = 0
    """Leading blocks of ``model.features`` that get no gradients."""
    downscale: int = 1
    """The student sees views averaged over squares of so many pixels; labels stay the full views'.
    At 2 a step costs a quarter, so that the same time shows the student four times the views."""
    max_minutes: float | None = None
    """The cosine ends at whichever comes first, the epochs or these minutes of training."""


@dataclass(frozen=True)
class DistillConfig:
    """A run of ``nima distill``."""

    photos: Path
    teacher: Path
    init: Path | None
    work_dir: Path
    out: Path
    name: str = "nima_mobilenet_v2"
    backbone: str = "mobilenet_v2"
    head_views: int = 4096
    """Views that the head is fitted on before any fine-tuning."""
    views: int = 24_000
    view: ViewConfig = field(default_factory=ViewConfig)
    # Without batch statistics the network has nothing to catch a large step: at 1e-3 it collapsed
    # to one answer for every photo within 250 steps.
    small_stage: StageConfig = StageConfig(3, 2e-4, 5e-4, batch_size=32, downscale=2)
    full_stage: StageConfig = StageConfig(2, 2e-4, 5e-4, batch_size=32, frozen_blocks=3)
    dropout: float = 0.2
    weight_decay: float = 1e-5
    mean_weight: float = 0.5
    ema_decay: float = 0.998
    seed: int = 20
    workers: int = 2
    threads: int = 2
