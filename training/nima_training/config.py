"""Configuration of a training run: one validated dataclass, from TOML and flags."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from nima_client.preprocess import PreprocessSpec
from nima_training.data.dataset import Augmentation
from nima_training.metrics import METRICS
from nima_training.models import BACKBONES, WEIGHTS_IMAGENET, WEIGHTS_NONE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class ConfigError(ValueError):
    """The configuration is not valid; the message names the field."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run. The defaults follow Talebi & Milanfar (2017) where it says.

    The paper trains with SGD, learning rates of 3e-7 for the backbone and 3e-6 for the head,
    momentum 0.9 and dropout 0.75; AdamW at the rates below converges in far fewer epochs.
    """

    manifest: Path
    photos: Path
    out: Path
    name: str = "nima"
    backbone: str = "mobilenet_v2"
    weights: str = "imagenet"
    dropout: float = 0.75
    preprocessing: PreprocessSpec = None  # type: ignore[assignment]
    """Default: the input size and the normalisation that the backbone was pretrained with."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    emd_r: float = 2.0
    epochs: int = 20
    frozen_epochs: int = 2
    """First epochs in which only the head learns."""
    batch_size: int = 64
    """Images a step of one process sees at once."""
    accumulate: int = 1
    """Micro-batches whose gradients are summed before each update."""
    backbone_lr: float = 1e-4
    head_lr: float = 1e-3
    weight_decay: float = 1e-4
    warmup: float = 0.02
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    plateau_patience: int = 2
    plateau_factor: float = 0.3
    clip_norm: float = 1.0
    norm_statistics: Literal["train", "frozen"] = "train"
    """``frozen`` keeps the batch norms' pretrained statistics, which small batches need."""
    precision: Literal["no", "fp16", "bf16"] = "no"
    compile: bool = False
    ema_decay: float = 0.0
    """0 switches the averaged weights off."""
    metric: str = "emd_r2"
    patience: int = 5
    """Epochs without a better ``metric`` on the validation split before the run stops; 0: never."""
    workers: int = 4
    threads: int = 0
    """Threads of torch on the CPU; 0 leaves its default."""
    seed: int = 0
    save_seconds: float = 300.0
    cpu: bool = False

    def __post_init__(self) -> None:
        checks = {
            "backbone": (self.backbone in BACKBONES, f"one of {', '.join(sorted(BACKBONES))}"),
            "dropout": (0 <= self.dropout < 1, "in [0, 1)"),
            "emd_r": (self.emd_r >= 1, "at least 1"),
            "epochs": (self.epochs >= 1, "at least 1"),
            "frozen_epochs": (0 <= self.frozen_epochs <= self.epochs, "in 0..epochs"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "accumulate": (self.accumulate >= 1, "at least 1"),
            "backbone_lr": (self.backbone_lr >= 0, "not negative"),
            "head_lr": (self.head_lr > 0, "positive"),
            "warmup": (0 <= self.warmup < 1, "in [0, 1)"),
            "schedule": (
                self.schedule in ("cosine", "plateau", "constant"),
                "cosine, plateau or constant",
            ),
            "norm_statistics": (self.norm_statistics in ("train", "frozen"), "train or frozen"),
            "precision": (self.precision in ("no", "fp16", "bf16"), "no, fp16 or bf16"),
            "ema_decay": (0 <= self.ema_decay < 1, "in [0, 1)"),
            "metric": (self.metric in METRICS, f"one of {', '.join(METRICS)}"),
            "patience": (self.patience >= 0, "not negative"),
            "plateau_patience": (self.plateau_patience >= 1, "at least 1"),
            "plateau_factor": (0 < self.plateau_factor < 1, "in (0, 1)"),
            "workers": (self.workers >= 0, "not negative"),
        }
        for name, (valid, expected) in checks.items():
            if not valid:
                raise ConfigError(f"{name} = {getattr(self, name)!r}: must be {expected}")
        if self.preprocessing is None:
            object.__setattr__(self, "preprocessing", BACKBONES[self.backbone].preprocessing)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; paths as their last component, so that no machine's layout is published."""
        values = asdict(self)
        for name in ("manifest", "photos", "out"):
            values[name] = Path(values[name]).name
        if self.weights not in (WEIGHTS_NONE, WEIGHTS_IMAGENET):
            values["weights"] = Path(self.weights).name
        values["preprocessing"] = self.preprocessing.to_dict()
        return values


_PATHS = {"manifest", "photos", "out"}


def load_config(file: Path | None, overrides: Mapping[str, Any]) -> TrainConfig:
    """Read a TOML file and apply flags over it; None values are flags that were not given.

    Raises:
        ConfigError: unreadable TOML, unknown or missing fields, values of a wrong type or range.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{file}: {error}") from error
    values.update({name: value for name, value in overrides.items() if value is not None})
    known = {item.name: item for item in fields(TrainConfig)}
    if unknown := sorted(set(values) - set(known)):
        raise ConfigError(f"unknown fields {unknown}; known: {', '.join(known)}")
    if missing := sorted(_PATHS - set(values)):
        raise ConfigError(f"missing: {', '.join(missing)} (a flag or a line of the TOML file)")
    for name, value in values.items():
        try:
            values[name] = _convert(name, value, values.get("backbone", TrainConfig.backbone))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{name} = {value!r}: {error}") from error
    return TrainConfig(**values)


def _convert(name: str, value: Any, backbone: str) -> Any:
    if name in _PATHS:
        return Path(value)
    if name == "preprocessing" and isinstance(value, Mapping):
        # What a table leaves out stays as the backbone wants it.
        known = BACKBONES[backbone].preprocessing.to_dict() if backbone in BACKBONES else {}
        return PreprocessSpec.from_dict({**known, **value})
    if name == "augmentation" and isinstance(value, Mapping):
        return Augmentation(**value)
    default = next(item.default for item in fields(TrainConfig) if item.name == name)
    if isinstance(default, bool) and not isinstance(value, bool):
        raise TypeError("must be true or false")
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, (int, float, str)) and not isinstance(value, type(default)):
        raise TypeError(f"must be of type {type(default).__name__}")
    return value


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """``name=value`` strings, the value in TOML syntax or else taken as text.

    Raises:
        ConfigError: no ``=``.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, sign, text = assignment.partition("=")
        if not sign:
            raise ConfigError(f"--set {assignment}: write it as name=value")
        try:
            values |= tomllib.loads(f"{name} = {text}")
        except tomllib.TOMLDecodeError:
            values[name] = text
    return values
