"""Configuration of a training run: one validated dataclass, from TOML and flags."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from nima_client._os_errors import reason
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
    frozen_epochs: int = None  # type: ignore[assignment]
    """First epochs in which only the head learns. Default: 2, but not all of the epochs."""
    batch_size: int = 64
    """Images a step of one process sees at once."""
    accumulate: int = 1
    """Micro-batches whose gradients are summed before each update."""
    backbone_lr: float = 1e-4
    head_lr: float = 1e-3
    weight_decay: float = 1e-4
    warmup: float = 0.02
    """Share of the run over which the learning rates rise from zero, at the start of the run and
    again where the backbone thaws."""
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    plateau_patience: int = 2
    plateau_factor: float = 0.3
    clip_norm: float = 1.0
    """Largest norm of all gradients together; 0 switches the clipping off."""
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
        if self.frozen_epochs is None:
            object.__setattr__(self, "frozen_epochs", max(0, min(2, self.epochs - 1)))
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{item.name} = {value!r}: must be finite")
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
            "weight_decay": (self.weight_decay >= 0, "not negative"),
            "clip_norm": (self.clip_norm >= 0, "not negative; 0 switches the clipping off"),
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
            "threads": (self.threads >= 0, "not negative"),
            "seed": (0 <= self.seed < 2**63, "in 0..2^63 - 1"),
            "save_seconds": (self.save_seconds >= 0, "not negative"),
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
_TABLES = {"preprocessing": PreprocessSpec, "augmentation": Augmentation}


def load_config(file: Path | None, overrides: Mapping[str, Any]) -> TrainConfig:
    """Read a TOML file and apply flags over it; None values are flags that were not given.

    A table among the flags changes the keys it names and leaves the others as the file has them.

    Raises:
        ConfigError: unreadable TOML, unknown or missing fields, values of a wrong type or range.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            # Windows' editors put a byte order mark first.
            values = tomllib.loads(file.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{file}: {reason(error)}") from error
    values = _merged(values, {n: value for n, value in overrides.items() if value is not None})
    known = {item.name: item for item in fields(TrainConfig)}
    if unknown := sorted(set(values) - set(known)):
        raise ConfigError(f"unknown fields {unknown}; known: {', '.join(known)}")
    if missing := sorted(_PATHS - set(values)):
        raise ConfigError(f"missing: {', '.join(missing)} (a flag or a line of the TOML file)")
    for name, value in values.items():
        try:
            values[name] = _convert(name, value, values.get("backbone", TrainConfig.backbone))
        except (TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"{name} = {value!r}: {error}") from error
    return TrainConfig(**values)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``over`` laid over it, table by table."""
    result = dict(base)
    for name, value in over.items():
        old = result.get(name)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[name] = _merged(old, value) if both else value  # type: ignore[arg-type]
    return result


def _convert(name: str, value: Any, backbone: str) -> Any:
    if name not in _TABLES:
        return _typed(value, get_type_hints(TrainConfig)[name])
    if not isinstance(value, Mapping):
        raise TypeError("must be a table, such as {resize = …}")
    kinds = get_type_hints(_TABLES[name])
    if unknown := sorted(set(value) - set(kinds)):
        raise ValueError(f"unknown fields {unknown}; known: {', '.join(kinds)}")
    table = {}
    for key, entry in value.items():
        try:
            table[key] = _typed(entry, kinds[key])
        except TypeError as error:
            raise TypeError(f"{key} {error}") from error
    if name == "preprocessing" and backbone in BACKBONES:
        # What a table leaves out stays as the backbone wants it.
        table = {**BACKBONES[backbone].preprocessing.to_dict(), **table}
    return PreprocessSpec.from_dict(table) if name == "preprocessing" else Augmentation(**table)


def _typed(value: Any, kind: Any) -> Any:
    """``value`` of TOML as a ``kind``: paths are written as text there, and 3.0 often as 3."""
    if kind is Path:
        return Path(value)
    if get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            raise TypeError("must be a list of numbers")
        return tuple(_typed(entry, float) for entry in value)
    if get_origin(kind) is Literal:
        kind = str
    elif get_args(kind):
        kind = get_args(kind)[0]  # an optional one: TOML has no None
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:  # isinstance would take true for 1
        raise TypeError(
            "must be true or false" if kind is bool else f"must be of type {kind.__name__}"
        )
    return value


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """``name=value`` strings, the value in TOML syntax or else taken as text.

    ``table.key=value`` names one key of a table; the other assignments to it stand.

    Raises:
        ConfigError: no ``=``, or a name that TOML cannot read.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, sign, text = assignment.partition("=")
        try:
            if not sign:
                raise ValueError(assignment)
            try:
                value = tomllib.loads(f"{name} = {text}")
            except tomllib.TOMLDecodeError:
                value = tomllib.loads(f"{name} = {json.dumps(text, ensure_ascii=False)}")
        except ValueError as error:
            raise ConfigError(f"--set {assignment}: write it as name=value") from error
        values = _merged(values, value)
    return values
