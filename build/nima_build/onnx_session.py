"""ONNX Runtime as the server uses it."""

from __future__ import annotations

from pathlib import Path

import onnxruntime


def cpu_session(model: bytes | Path) -> onnxruntime.InferenceSession:
    """A session on the CPU with one thread that does not spin."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
