"""What flows through a graph: named tensors for one image after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx.utils import Extractor

from nima_client.contract import PIXELS

Array = npt.NDArray[Any]


def tapped(
    model: onnx.ModelProto, names: Sequence[str], images: Sequence[Array]
) -> Iterator[list[Array]]:
    """The tensors ``names`` for each image; only what leads to them is run.

    Args:
        model: graph with the input PIXELS.
        names: tensors inside it.
        images: uint8 ``[1, S, S, 3]`` each.
    """
    known = {info.name for info in [*model.graph.value_info, *model.graph.output]}
    for name in names:
        if name not in known:
            # The extractor wants each of its outputs to be declared.
            model.graph.value_info.append(
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            )
    part = Extractor(model).extract_model([PIXELS], list(names))
    options = onnxruntime.SessionOptions()
    # Level 1 fuses nothing into integer kernels: what is seen are the graph's own FP32 values.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(
        part.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    for image in images:
        yield session.run(list(names), {PIXELS: image})


def constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The initializers of a graph by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def replace_constant(tensor: onnx.TensorProto, value: Array) -> None:
    """Put ``value`` in the place of an initializer's, with its type."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(value, dtype), tensor.name))


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """An attribute of a node, or ``default``."""
    for found in node.attribute:
        if found.name == name:
            return onnx.helper.get_attribute_value(found)
    return default
