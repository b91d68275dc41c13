"""Checkpoints: a directory with ``model.safetensors`` and ``checkpoint.json``, never pickle.

The JSON carries everything a build needs beside the weights: backbone, preprocessing
specification, reference quantiles, training configuration, metrics and where it came from. The
SHA-256 of the safetensors file is the checkpoint's identity and travels to the client.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from nima_training.checkpoint_files import (
    FORMAT,
    NUM_QUANTILES,
    CheckpointError,
    check_reference,
    read_weights,
    replace_files,
)
from nima_training.distribution import NUM_RATINGS
from nima_training.files import json_bytes

if TYPE_CHECKING:
    from nima_client.preprocess import PreprocessSpec


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
    here, own = Path(__file__).parent, Path(__file__).name
    try:
        # Installed into an environment inside another repository, it is none of that one's files.
        subprocess.run(
            ["git", "ls-files", "--error-unmatch", "--", own],
            cwd=here, capture_output=True, check=True,
        )  # fmt: skip
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

    Whatever is raised, and if the process is killed, the directory holds the checkpoint that was
    there before, or the new one.
    """
    from safetensors.torch import save

    directory = Path(directory)
    for field in ("name", "backbone", "dropout", "preprocessing", "reference"):
        if field not in meta:
            raise CheckpointError(f"checkpoint metadata lacks {field!r}")
    check_reference(meta["reference"])
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
    replace_files(directory, weights, full["weights_sha256"], described)
    return directory


def load_checkpoint(directory: str | Path) -> Checkpoint:
    """Load a checkpoint; the model is in eval mode on the CPU.

    Raises:
        CheckpointError: files missing, metadata malformed, or weights whose hash is not the one
            the metadata names, that do not fit its backbone, or that are not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    from nima_client.preprocess import PreprocessSpec
    from nima_training.models import create_model

    directory = Path(directory)
    meta, weights = read_weights(directory)
    try:
        spec = PreprocessSpec.from_dict(meta["preprocessing"])
        model = create_model(
            meta["backbone"], weights="none", dropout=meta["dropout"], widths=meta.get("widths")
        )
        model.load_state_dict(load(weights))
    except (TypeError, ValueError, RuntimeError, SafetensorError) as error:
        # PyTorch lists every tensor that does not fit on a line of its own; the first will do.
        reason = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise CheckpointError(f"{directory} cannot be loaded: {reason}") from error
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise CheckpointError(
                f"{directory} is broken: its weights {name} are not finite, so it scores no photo"
            )
    return Checkpoint(model.eval(), meta, spec)
