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
    mixed: float = 0.20
    """Share of views that blend or splice two photos; the teacher labels the result."""


@dataclass(frozen=True)
class StageConfig:
    """One training stage. The learning rate warms up, then falls along a cosine to ``floor``."""

    views: int
    """Fresh views that the stage trains on; none is shown twice."""
    learning_rate: float
    head_learning_rate: float
    size: int = 224
    """Side in pixels at which teacher and student see the views; a step costs its square."""
    batch_size: int = 32
    frozen_blocks: int = 0
    """Leading blocks of ``model.features`` that stay as they are; 4 save a third of a step."""
    hint_weight: float = 0.1
    """Weight of the hint loss beside the distribution's (:mod:`nima_training.distill.hints`)."""
    floor: float = 0.0
    """Where the cosine ends, as a share of the learning rate."""
    max_minutes: float | None = None
    """The cosine ends at whichever comes first, the views or these minutes of training."""


SMALL = StageConfig(160_000, 7e-4, 2e-3, size=128, hint_weight=0.5, floor=0.3)
FULL = StageConfig(160_000, 4e-4, 1e-3, frozen_blocks=4)


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
    calibration_views: int = 256
    """Views on which the student's batch norms get their statistics."""
    fit_views: int = 4096
    """Views that the head and the adapters are fitted on at the start, at least 256."""
    view: ViewConfig = field(default_factory=ViewConfig)
    small_stage: StageConfig = SMALL
    full_stage: StageConfig = FULL
    dropout: float = 0.0
    weight_decay: float = 1e-5
    mean_weight: float = 0.5
    ema_decay: float = 0.998
    seed: int = 20
    workers: int = 1
    threads: int = 2
