"""A network that only averages, for ``scale.py``: a stream of a million images takes minutes."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save
from PIL import Image

from nima_build.metadata import ModelMetadata
from nima_build.repository import load_metadata
from nima_client._files import sha256_file


def simulated(repository: Path, target: Path) -> tuple[Path, list[bytes]]:
    """The product's repository with a network that only averages, and small photos for it.

    What could leak (transport, queues, processes, decoder, client) is all real.
    """
    shutil.copytree(repository, target, ignore=shutil.ignore_patterns("__pycache__", "SHA256SUMS"))
    side = load_metadata(repository).spec.crop_size
    ratings = np.arange(1, 11, dtype=np.float32)
    constants = {
        "weights": np.linspace(-0.01, 0.01, 30, dtype=np.float32).reshape(3, 10),
        "ratings": ratings[:, None],
        "squares": (ratings**2)[:, None],
        "axes": np.array([1, 2], np.int64),
    }
    steps = [
        helper.make_node("Cast", ["PIXELS"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["values", "axes"], ["colour"], keepdims=0),
        helper.make_node("MatMul", ["colour", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["DISTRIBUTION"], axis=1),
        helper.make_node("MatMul", ["DISTRIBUTION", "ratings"], ["MEAN"]),
        helper.make_node("MatMul", ["DISTRIBUTION", "squares"], ["second"]),
        helper.make_node("Mul", ["MEAN", "MEAN"], ["square"]),
        helper.make_node("Sub", ["second", "square"], ["variance"]),
        helper.make_node("Sqrt", ["variance"], ["STD"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        steps,
        "average",
        [value("PIXELS", TensorProto.UINT8, ["B", side, side, 3])],
        [value(n, TensorProto.FLOAT, ["B", k]) for n, k in
         (("DISTRIBUTION", 10), ("MEAN", 1), ("STD", 1))],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx = target / "nima_network" / "1" / "model.onnx"
    save(model, onnx)
    path = onnx.with_name("model.json")
    metadata = replace(ModelMetadata.load(path), onnx_sha256=sha256_file(onnx))
    metadata.save(path)
    photos, noise = [], np.random.default_rng(0)
    for _ in range(16):
        pixels = noise.integers(0, 256, (96, 128, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        photos.append(buffer.getvalue())
    return target, photos
