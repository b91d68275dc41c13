"""ONNX Runtime as the server uses it."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from nima_build.metadata import PROPERTY_PREFIX


def cpu_session(model: bytes | Path) -> onnxruntime.InferenceSession:
    """A session on the CPU with one thread that does not spin."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def graph_checkpoint(path: Path) -> str:
    """SHA-256 of the checkpoint a graph was exported from; empty where it does not say, or is none.

    Where one only serves there is no package ``onnx``, so ONNX Runtime reads it.
    """
    try:
        properties = cpu_session(path).get_modelmeta().custom_metadata_map
    except Exception:  # ONNX Runtime has kinds of its own, without a common one
        return ""
    return str(properties.get(f"{PROPERTY_PREFIX}checkpoint_sha256", ""))
