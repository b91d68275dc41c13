"""Checkpoints: a directory with ``model.safetensors`` and ``checkpoint.json``, never pickle.

The JSON carries everything a build needs beside the weights: backbone, preprocessing
specification, reference quantiles, training configuration, metrics and where it came from. The
SHA-256 of the safetensors file is the checkpoint's identity and travels to the client.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from nima_client._files import sha256_file, write_together
from nima_training.distribution import NUM_RATINGS
from nima_training.files import json_bytes

if TYPE_CHECKING:
    from nima_client.preprocess import PreprocessSpec

FORMAT = 1
WEIGHTS_FILE = "model.safetensors"
META_FILE = "checkpoint.json"
NUM_QUANTILES = 101


class CheckpointError(ValueError):
    """The directory is not a checkpoint this version can read; the message says why."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: the model in eval mode, its metadata, its preprocessing."""

    model: nn.Module
    meta: dict[str, Any]
    spec: PreprocessSpec


def reference_quantiles(means: np.ndarray) -> list[float]:
    """The 0th to 100th percentile (101 values) of predicted mean ratings ``[N]``."""
    values = np.asarray(means, dtype=np.float64).ravel()
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError("reference quantiles need at least one finite predicted mean")
    return [round(float(q), 6) for q in np.percentile(values, np.arange(NUM_QUANTILES))]


def git_commit() -> str | None:
    """HEAD of this package's repository, with ``-dirty`` if it differs; None outside one."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "--", "."],
            cwd=here, capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("-dirty" if changed else "")


def save_checkpoint(directory: str | Path, model: nn.Module, meta: Mapping[str, Any]) -> Path:
    """Write ``model`` and ``meta`` as a checkpoint directory.

    Args:
        directory: created if absent; an existing checkpoint in it is replaced.
        model: its ``state_dict`` is stored as is (contiguous, on the CPU).
        meta: needs ``name``, ``backbone``, ``dropout``, ``preprocessing`` (a specification's
            dict) and ``reference`` ({"set", "quantiles"}); ``widths`` (of a pruned backbone),
            ``training``, ``data_sha256`` and ``metrics`` are optional. ``format``,
            ``num_ratings``, ``weights_sha256`` and (unless given) ``git_commit`` are filled in.

    Returns:
        The directory.

    Raises:
        CheckpointError: a field is missing or malformed, or JSON cannot hold it (NaN).
        OSError: it could not be written.

    Whatever is raised, a checkpoint that was there before stays as it was.
    """
    from safetensors.torch import save

    directory = Path(directory)
    for field in ("name", "backbone", "dropout", "preprocessing", "reference"):
        if field not in meta:
            raise CheckpointError(f"checkpoint metadata lacks {field!r}")
    _check_reference(meta["reference"])
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    weights = save(state)
    full = {
        "format": FORMAT,
        "training": {},
        "data_sha256": None,
        "metrics": {},
        "git_commit": git_commit(),
        **meta,
        "num_ratings": NUM_RATINGS,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    try:
        described = json_bytes(full)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint metadata is not JSON: {error}") from error
    # The JSON goes last and names the weights by hash: were the machine to stop between the two
    # renames, loading would refuse the pair.
    write_together({directory / WEIGHTS_FILE: weights, directory / META_FILE: described})
    return directory


def read_meta(directory: str | Path) -> dict[str, Any]:
    """The validated ``checkpoint.json`` of ``directory``, without touching the weights."""
    path = Path(directory) / META_FILE
    try:
        meta: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{directory} is not a checkpoint: it has no {META_FILE}") from error
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if meta.get("format") != FORMAT:
        raise CheckpointError(f"{path}: format {meta.get('format')!r}, this version reads {FORMAT}")
    if meta.get("num_ratings") != NUM_RATINGS:
        raise CheckpointError(f"{path}: num_ratings must be {NUM_RATINGS}")
    _check_reference(meta.get("reference"))
    return meta


def load_checkpoint(directory: str | Path) -> Checkpoint:
    """Load a checkpoint; the model is in eval mode on the CPU.

    Raises:
        CheckpointError: files missing, metadata malformed, or weights whose hash is not the one
            the metadata names.
    """
    from safetensors.torch import load_file

    from nima_client.preprocess import PreprocessSpec
    from nima_training.models import create_model

    directory = Path(directory)
    meta = read_meta(directory)
    weights = directory / WEIGHTS_FILE
    if not weights.is_file():
        raise CheckpointError(f"{directory} is not a checkpoint: it has no {WEIGHTS_FILE}")
    if (actual := sha256_file(weights)) != meta["weights_sha256"]:
        raise CheckpointError(
            f"{weights} has SHA-256 {actual[:12]}…, {META_FILE} names "
            f"{meta['weights_sha256'][:12]}…: the checkpoint is damaged or half written"
        )
    model = create_model(
        meta["backbone"], weights="none", dropout=meta["dropout"], widths=meta.get("widths")
    )
    model.load_state_dict(load_file(weights))
    return Checkpoint(model.eval(), meta, PreprocessSpec.from_dict(meta["preprocessing"]))


def _check_reference(reference: object) -> None:
    if not isinstance(reference, Mapping) or not {"set", "quantiles"} <= reference.keys():
        raise CheckpointError('checkpoint metadata: "reference" needs "set" and "quantiles"')
    quantiles = reference["quantiles"]
    if len(quantiles) != NUM_QUANTILES or any(
        low > high for low, high in itertools.pairwise(quantiles)
    ):
        raise CheckpointError(f"reference quantiles must be {NUM_QUANTILES} ascending numbers")
