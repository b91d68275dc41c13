"""What an ONNX graph says of itself: string metadata under the prefix ``nima.``."""

from __future__ import annotations

from pathlib import Path

import onnx

_PREFIX = "nima."


def set_properties(model: onnx.ModelProto, properties: dict[str, str]) -> None:
    """Add string metadata to a graph."""
    for key, value in properties.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = f"{_PREFIX}{key}", value


def read_properties(model: onnx.ModelProto) -> dict[str, str]:
    """The metadata :func:`set_properties` wrote, without the prefix."""
    return {
        entry.key.removeprefix(_PREFIX): entry.value
        for entry in model.metadata_props
        if entry.key.startswith(_PREFIX)
    }


def graph_checkpoint(path: Path) -> str:
    """SHA-256 of the checkpoint that a graph was made from; empty where it does not say.

    Raises:
        google.protobuf.message.DecodeError: not an ONNX file.
    """
    return read_properties(onnx.load(path)).get("checkpoint_sha256", "")
