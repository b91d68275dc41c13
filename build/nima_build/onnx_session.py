"""ONNX Runtime as the server uses it."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from nima_build.metadata import PROPERTY_PREFIX, ModelMetadata


def cpu_session(model: bytes | Path) -> onnxruntime.InferenceSession:
    """A session on the CPU with one thread that does not spin."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def is_of_model(path: Path, metadata: ModelMetadata) -> bool:
    """Whether a graph was exported from the checkpoint of ``metadata``, for its preprocessing.

    What does not say so, or is no graph, was not. Where one only serves there is no package
    ``onnx``, so ONNX Runtime reads it.
    """
    try:
        found = cpu_session(path).get_modelmeta().custom_metadata_map
    except Exception:  # ONNX Runtime has kinds of its own, without a common one
        return False
    wanted = {
        "checkpoint_sha256": metadata.checkpoint_sha256,
        "preprocessing_id": metadata.spec.id,
    }
    return all(found.get(f"{PROPERTY_PREFIX}{key}") == value for key, value in wanted.items())
