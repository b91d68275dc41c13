"""The FP16 graph, made from the FP32 one without torch: FP16 body, FP32 stem, softmax and moments.

TensorRT 11 knows only strongly typed networks and 10 does best with them: the precision of each
tensor is written in the graph. FP32 is kept where digits are lost:

- behind the logits, where sums of ten products decide the third digit of a score;
- in the first two convolutions, where the depthwise one of a MobileNet, its BatchNorm folded, has
  weights of 50 and more that can cancel: it kept the network bundled before the present one from
  an error of 0.003 of a mean rating on average; the present one has none either way
  (benchmarks/graph_precision.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from nima_build.metadata import ExportError
from nima_client.contract import OUTPUT_DISTRIBUTION

FP16_NAME = "model.fp16.onnx"
STEM_CONVOLUTIONS = 2
_ACTIVATIONS = {"Clip", "Relu", "HardSwish", "HardSigmoid", "Sigmoid"}


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """FP16 version of a graph written by :mod:`nima_build.export`; the argument stays as it is.

    ONNX Runtime's own converter is not used: it passes every tensor between two nodes kept in
    FP32 through FP16, which is what the moments must be spared.

    Raises:
        ExportError: the graph has no softmax that gives the distribution.
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    nodes = list(graph.node)
    first, last = stem_length(nodes), _softmax_index(nodes)
    stem, body, tail = nodes[:first], nodes[first:last], nodes[last:]
    into: list[NodeProto] = []
    if stem:
        boundary = stem[-1].output[0]
        into = [_cast(boundary, f"{boundary}_fp16", TensorProto.FLOAT16)]
        _rename(body, boundary, into[0].output[0])
    logits = tail[0].input[0]
    out = _cast(logits, f"{logits}_fp32", TensorProto.FLOAT)
    tail[0].input[0] = out.output[0]
    _halve_constants(graph, body, {name for node in (*stem, *tail) for name in node.input})
    del graph.node[:]
    graph.node.extend([*stem, *into, *body, out, *tail])
    del graph.value_info[:]
    onnx.checker.check_model(half, full_check=True)
    return half


def stem_length(nodes: Sequence[NodeProto]) -> int:
    """How many of the first nodes stay in FP32.

    Up to the second convolution and its activation where one tensor alone leads on from there;
    none in networks that branch before (ResNet, DenseNet).
    """
    convolutions = [index for index, node in enumerate(nodes) if node.op_type == "Conv"]
    if len(convolutions) < STEM_CONVOLUTIONS:
        return 0
    end = convolutions[STEM_CONVOLUTIONS - 1] + 1
    while end < len(nodes) and nodes[end].op_type in _ACTIVATIONS:
        end += 1
    made = {name for node in nodes[:end] for name in node.output}
    used_later = {name for node in nodes[end:] for name in node.input}
    return end if made & used_later == {nodes[end - 1].output[0]} else 0


def _softmax_index(nodes: Sequence[NodeProto]) -> int:
    for index, node in enumerate(nodes):
        if node.op_type == "Softmax" and OUTPUT_DISTRIBUTION in node.output:
            return index
    raise ExportError("not a graph of `nima export`: no softmax gives DISTRIBUTION")


def _cast(source: str, target: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"to_{target}", to=kind)


def _rename(nodes: Sequence[NodeProto], old: str, new: str) -> None:
    for node in nodes:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new


def _halve_constants(graph: onnx.GraphProto, body: list[NodeProto], elsewhere: set[str]) -> None:
    """FP16 for every FP32 constant of the body; one used elsewhere too is kept beside its copy."""
    used = {name for node in body for name in node.input}
    for tensor in list(graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or tensor.name not in used:
            continue
        if tensor.name in elsewhere:
            copied = _half_tensor(tensor)
            copied.name = f"{tensor.name}_fp16"
            graph.initializer.append(copied)
            _rename(body, tensor.name, copied.name)
        else:
            tensor.CopyFrom(_half_tensor(tensor))
    for node in body:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
            elif attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(_half_tensor(attribute.t))


def _half_tensor(tensor: TensorProto) -> TensorProto:
    limit = float(np.finfo(np.float16).max)
    values: npt.NDArray[Any] = numpy_helper.to_array(tensor)
    return numpy_helper.from_array(np.clip(values, -limit, limit).astype(np.float16), tensor.name)
