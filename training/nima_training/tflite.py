"""Read the weights of a quantised TFLite network back into floating point.

Only the flatbuffer is parsed (package ``tflite``, the schema's generated reader): no interpreter
runs. Integer weights become ``scale * (q - zero_point)``, per tensor or per output channel
(TensorFlow Lite 8-bit quantisation specification). Batch norm is already folded in such files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

CONV, DEPTHWISE, DENSE = "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"
_NUMPY_TYPES = {
    "FLOAT32": np.float32, "FLOAT16": np.float16, "INT8": np.int8, "UINT8": np.uint8,
    "INT32": np.int32, "INT64": np.int64, "INT16": np.int16,
}  # fmt: skip


class TFLiteError(ValueError):
    """The file is not a TFLite network this reader understands; the message says why."""


@dataclass(frozen=True)
class FoldedLayer:
    """One convolution or dense layer with folded batch norm.

    ``weight`` is FP32 in PyTorch's layout, ``[out, in/groups, kh, kw]`` or ``[out, in]``; ``bias``
    is FP32 ``[out]``.
    """

    op: str
    weight: Tensor
    bias: Tensor


def read_tflite(path: str | Path) -> list[FoldedLayer]:
    """The weighted layers of the network in ``path``, in execution order.

    Raises:
        TFLiteError: not a TFLite flatbuffer, or a layer with a type this reader does not know.
    """
    import tflite

    data = Path(path).read_bytes()
    if data[4:8] != b"TFL3":
        raise TFLiteError(f"{path} is not a TFLite file (no TFL3 identifier)")
    model = tflite.Model.GetRootAsModel(data, 0)
    graph = model.Subgraphs(0)
    names = {value: name for name, value in vars(tflite.BuiltinOperator).items() if name.isupper()}
    types = {value: name for name, value in vars(tflite.TensorType).items() if name.isupper()}
    layers: list[FoldedLayer] = []
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        code = model.OperatorCodes(operator.OpcodeIndex())
        name = names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        if name not in (CONV, DEPTHWISE, DENSE):
            continue
        weight = _constant(model, graph, operator.Inputs(1), types)
        if operator.InputsLength() > 2 and operator.Inputs(2) >= 0:
            bias = _constant(model, graph, operator.Inputs(2), types).ravel()
        else:
            bias = np.zeros(weight.shape[-1] if name == DEPTHWISE else weight.shape[0])
        layers.append(_layer(name, weight, bias))
    return layers


def _layer(name: str, weight: np.ndarray, bias: np.ndarray) -> FoldedLayer:
    if name == DEPTHWISE:
        weight = weight.transpose(3, 0, 1, 2)  # [1, kh, kw, out] -> [out, 1, kh, kw]
    elif name == CONV:
        weight = weight.transpose(0, 3, 1, 2)  # [out, kh, kw, in] -> [out, in, kh, kw]
    return FoldedLayer(
        name,
        torch.from_numpy(np.ascontiguousarray(weight, dtype=np.float32)),
        torch.from_numpy(np.ascontiguousarray(bias, dtype=np.float32)),
    )


def _constant(model: Any, graph: Any, index: int, types: dict[int, str]) -> np.ndarray:
    """The dequantised FP32 value of a constant tensor."""
    tensor = graph.Tensors(index)
    kind = types[tensor.Type()]
    if kind not in _NUMPY_TYPES:
        raise TFLiteError(f"tensor {tensor.Name().decode()!r} has type {kind}: not supported")
    raw = model.Buffers(tensor.Buffer()).DataAsNumpy()
    if not isinstance(raw, np.ndarray):
        raise TFLiteError(
            f"tensor {tensor.Name().decode()!r} is not constant: not a trained network"
        )
    value = raw.view(_NUMPY_TYPES[kind]).reshape(tensor.ShapeAsNumpy())
    quantisation = tensor.Quantization()
    if kind.startswith("FLOAT") or quantisation is None or quantisation.ScaleLength() == 0:
        return value.astype(np.float32)
    scale = quantisation.ScaleAsNumpy().astype(np.float64)
    zero = quantisation.ZeroPointAsNumpy().astype(np.float64)
    if scale.size > 1:
        shape = [1] * value.ndim
        shape[quantisation.QuantizedDimension()] = scale.size
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return np.asarray((value.astype(np.float64) - zero) * scale, dtype=np.float32)
