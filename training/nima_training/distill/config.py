"""Everything that decides a distillation run, defaults as for the bundled checkpoint."""

from __future__ import annotations

import math
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
    """Passes over the views; a run leaves a stage of 0 out."""
    learning_rate: float = 1e-4
    size: int | None = None
    """Teacher and student see views resized to so many pixels; None leaves them as served."""
    frozen_parts: int = 6
    """Leading parts of ``features`` that keep what pruning fitted: most of a step's time, and
    nearly exact already."""
    batch_size: int = 32
    max_minutes: float | None = None
    """The cosine ends at whichever comes first, the epochs or these minutes of training."""

    def __post_init__(self) -> None:
        """Refuse limits that would pass untrained weights off as trained.

        Raises:
            ValueError: negative epochs, or minutes that are not above 0.
        """
        if not 0 <= self.epochs < math.inf:
            raise ValueError(f"a stage of {self.epochs} epochs: give 0 (left out) or more")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ValueError(
                f"a stage of {self.max_minutes} minutes: give more than 0, or 0 epochs to leave it "
                "out"
            )


@dataclass(frozen=True)
class DistillConfig:
    """A run of ``nima distill``."""

    photos: Path
    teacher: Path
    work_dir: Path
    out: Path
    name: str = "nima_mobilenet"
    budget: float = 380e6
    """Multiply-adds of the student at 224 x 224; the teacher has 568 million."""
    prune_views: int = 1280
    """Views that the pruned network is fitted on before any training."""
    views: int = 24_000
    view: ViewConfig = field(default_factory=ViewConfig)
    small_stage: StageConfig = StageConfig(8, size=160)
    full_stage: StageConfig = StageConfig(8)
    weight_decay: float = 1e-4
    mean_weight: float = 0.5
    hint_weight: float = 0.3
    batch_mixed: float = 0.5
    """Share of batches whose views are blended or spliced once more, differently every time."""
    ema_decay: float = 0.998
    seed: int = 20
    workers: int = 2
    threads: int = 2
