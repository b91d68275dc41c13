"""What an ONNX graph says of itself: string metadata, for whoever has the package ``onnx``."""

from __future__ import annotations

import onnx

from nima_build.metadata import PROPERTY_PREFIX


def set_properties(model: onnx.ModelProto, properties: dict[str, str]) -> None:
    """Add string metadata to a graph."""
    for key, value in properties.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = f"{PROPERTY_PREFIX}{key}", value


def read_properties(model: onnx.ModelProto) -> dict[str, str]:
    """The metadata :func:`set_properties` wrote, without the prefix."""
    return {
        entry.key.removeprefix(PROPERTY_PREFIX): entry.value
        for entry in model.metadata_props
        if entry.key.startswith(PROPERTY_PREFIX)
    }
