"""Checkpoints: a directory with ``model.safetensors`` and ``checkpoint.json``, never pickle.

The JSON carries everything a build needs beside the weights: backbone, preprocessing
specification, reference quantiles, training configuration, metrics and where it came from. The
SHA-256 of the safetensors file is the checkpoint's identity and travels to the client.

Two files cannot be replaced at once, so the JSON alone decides. New weights are written beside the
old ones under a name with their hash, then the JSON that names them takes its place, then they take
theirs. Loading looks under both names: wherever a kill falls, it finds the old pair or the new one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from nima_client._files import remove_unfinished, write_atomic
from nima_training.distribution import NUM_RATINGS
from nima_training.files import json_bytes

if TYPE_CHECKING:
    from nima_client.preprocess import PreprocessSpec

FORMAT = 1
WEIGHTS_FILE = "model.safetensors"
META_FILE = "checkpoint.json"
_STEM, _SUFFIX = os.path.splitext(WEIGHTS_FILE)
NUM_QUANTILES = 101


_FIELDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "name": (str, "text"),
    "backbone": (str, "text"),
    "dropout": ((int, float), "a number"),
    "preprocessing": (dict, "an object"),
    "weights_sha256": (str, "text"),
}
"""What every ``checkpoint.json`` has, and of what kind."""


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
    _replace(directory, weights, full["weights_sha256"], described)
    return directory


def read_meta(directory: str | Path) -> dict[str, Any]:
    """The validated ``checkpoint.json`` of ``directory``, without touching the weights.

    Raises:
        CheckpointError: it is missing, no JSON, or a field is missing or of the wrong kind.
    """
    path = Path(directory) / META_FILE
    try:
        meta: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{directory} is not a checkpoint: it has no {META_FILE}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(meta, dict):
        raise CheckpointError(f"{path} is not the metadata of a checkpoint")
    if meta.get("format") != FORMAT:
        raise CheckpointError(f"{path}: format {meta.get('format')!r}, this version reads {FORMAT}")
    if meta.get("num_ratings") != NUM_RATINGS:
        raise CheckpointError(f"{path}: num_ratings must be {NUM_RATINGS}")
    for name, (kind, expected) in _FIELDS.items():
        if not isinstance(meta.get(name), kind):
            raise CheckpointError(f"{path}: {name} must be {expected}, not {meta.get(name)!r}")
    _check_reference(meta.get("reference"))
    return meta


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


def _names(directory: Path, sha256: str) -> tuple[Path, Path]:
    """The file of the weights, and the one that they are in until the JSON names them."""
    # Links may lead to another disk, where no rename goes.
    weights = Path(os.path.realpath(directory / WEIGHTS_FILE))
    return weights, weights.with_name(f"{_STEM}.{sha256[:16]}{_SUFFIX}")


def remove_half_written(directory: Path) -> None:
    """Remove what a killed process had half written of a checkpoint: as large as its weights."""
    final, _ = _names(directory, "")
    for path in (directory / META_FILE, final):
        remove_unfinished(path)
    for left in final.parent.glob(f".{_STEM}.{'?' * 16}.*"):
        _, pending = _names(directory, left.name.split(".")[2])
        remove_unfinished(pending)


def _replace(directory: Path, weights: bytes, sha256: str, described: bytes) -> None:
    final, pending = _names(directory, sha256)
    remove_half_written(directory)
    left_over = set(final.parent.glob(f"{_STEM}.{'?' * 16}{_SUFFIX}"))  # by a kill
    try:
        write_atomic(pending, weights)
        if final.exists():
            pending.chmod(final.stat().st_mode & 0o7777)
        write_atomic(directory / META_FILE, described)
    except BaseException:
        if _named(directory) != sha256:  # it may have been interrupted right after
            pending.unlink(missing_ok=True)
        raise
    pending.replace(final)
    for path in left_over - {pending}:
        path.unlink()


def _named(directory: Path) -> str | None:
    try:
        return read_meta(directory).get("weights_sha256")
    except CheckpointError:
        return None


def read_weights(directory: Path) -> tuple[dict[str, Any], bytes]:
    """The metadata and the weights file that it names; of one save, while another is under way.

    Raises:
        CheckpointError: files missing, metadata malformed, or another hash than it names.
    """
    while True:
        meta = read_meta(directory)
        found = ""
        for path in reversed(_names(directory, meta["weights_sha256"])):
            try:
                weights = path.read_bytes()
            except (FileNotFoundError, IsADirectoryError):
                continue
            if (found := hashlib.sha256(weights).hexdigest()) == meta["weights_sha256"]:
                return meta, weights
        if read_meta(directory) != meta:
            continue
        if not found:
            raise CheckpointError(f"{directory} is not a checkpoint: it has no {WEIGHTS_FILE}")
        raise CheckpointError(
            f"{directory / WEIGHTS_FILE} has SHA-256 {found[:12]}…, {META_FILE} names "
            f"{meta['weights_sha256'][:12]}…: the checkpoint is damaged or half copied"
        )


def _check_reference(reference: object) -> None:
    if not isinstance(reference, Mapping) or not {"set", "quantiles"} <= reference.keys():
        raise CheckpointError('checkpoint metadata: "reference" needs "set" and "quantiles"')
    quantiles = reference["quantiles"]
    if (
        not isinstance(quantiles, Sequence)
        or len(quantiles) != NUM_QUANTILES
        or not all(isinstance(value, Real) and math.isfinite(value) for value in quantiles)
        or any(low > high for low, high in itertools.pairwise(quantiles))
    ):
        raise CheckpointError(f"reference quantiles must be {NUM_QUANTILES} ascending numbers")
