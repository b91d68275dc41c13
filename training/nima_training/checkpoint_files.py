"""The two files of a checkpoint, and how new ones take their place.

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
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from nima_client._files import remove_unfinished, write_atomic
from nima_training.distribution import NUM_RATINGS

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
    check_reference(meta.get("reference"))
    return meta


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


def replace_files(directory: Path, weights: bytes, sha256: str, described: bytes) -> None:
    """Have these weights, whose hash it is, and this JSON, which names it, take their place.

    Raises:
        OSError: they could not be written; the previous pair is still in place, or the new one is.
    """
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


def check_reference(reference: object) -> None:
    """Refuse (:class:`CheckpointError`) what are no reference quantiles."""
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
