"""The FP16 graph, made from the FP32 one without torch: FP16 body, FP32 softmax and moments.

TensorRT 11 knows only strongly typed networks and 10 does best with them: the precision of each
tensor is written in the graph. What needs FP32 is the part after the logits, where sums of ten
products decide the third digit of a score.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from nima_build.export import ExportError
from nima_build.files import write_atomic
from nima_client.contract import OUTPUT_DISTRIBUTION

FP16_NAME = "model.fp16.onnx"


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
    start = _first_after_logits(graph.node)
    body, tail = graph.node[:start], graph.node[start:]
    logits = tail[0].input[0]
    used_by_tail = {name for node in tail for name in node.input}
    used_by_body = {name for node in body for name in node.input}
    for tensor in list(graph.initializer):
        if tensor.data_type == TensorProto.FLOAT and tensor.name in used_by_body:
            if tensor.name in used_by_tail:
                raise ExportError(f"{tensor.name} is a constant of both the body and the moments")
            tensor.CopyFrom(_half_tensor(tensor))
    for node in body:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
            elif attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(_half_tensor(attribute.t))
    cast = helper.make_node(
        "Cast", [logits], [f"{logits}_fp32"], name="logits_to_fp32", to=TensorProto.FLOAT
    )
    tail[0].input[0] = cast.output[0]
    nodes = [*body, cast, *tail]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    onnx.checker.check_model(half, full_check=True)
    return half


def write_fp16(onnx_path: Path) -> Path:
    """Write ``model.fp16.onnx`` beside an FP32 graph.

    Raises:
        ExportError: the FP32 graph is not one of ours.
        OSError: unreadable, or not writable.
    """
    path = onnx_path.with_name(FP16_NAME)
    write_atomic(path, to_fp16(onnx.load(onnx_path)).SerializeToString())
    return path


def _first_after_logits(nodes: Iterable[onnx.NodeProto]) -> int:
    """Index of the softmax that gives the distribution; what follows it are the moments."""
    for index, node in enumerate(nodes):
        if node.op_type == "Softmax" and OUTPUT_DISTRIBUTION in node.output:
            return index
    raise ExportError("not a graph of `nima export`: no softmax gives DISTRIBUTION")


def _half_tensor(tensor: TensorProto) -> TensorProto:
    values = numpy_helper.to_array(tensor)
    rounded = round_kernels(values) if values.ndim == 4 else _to_half(values)
    return numpy_helper.from_array(rounded, tensor.name)


def _to_half(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    limit = float(np.finfo(np.float16).max)
    return np.clip(values, -limit, limit).astype(np.float16)


def round_kernels(weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Convolution weights ``[O, I, H, W]`` in FP16, the sum of each kernel kept.

    A folded depthwise kernel has large taps of opposite sign over neighbouring, nearly equal
    pixels: what rounding does to their sum is what it does to the output. So the error of the sum
    is given back in steps of one unit in the last place, the large taps first. On the bundled
    model this cuts the error of the mean rating to a third.
    """
    rounded = _to_half(weights)
    taps = weights.shape[2] * weights.shape[3]
    if taps == 1:
        return rounded
    exact = weights.reshape(-1, taps).astype(np.float64)
    kernels = rounded.reshape(-1, taps)
    error = exact.sum(axis=1) - kernels.astype(np.float64).sum(axis=1)
    rows = np.arange(len(kernels))
    for column in np.argsort(-np.abs(exact), axis=1).T:
        tap = kernels[rows, column]
        moved = _to_half(tap.astype(np.float64) + error)
        step = moved.astype(np.float64) - tap.astype(np.float64)
        with np.errstate(over="ignore"):  # at the largest number the next one is infinite
            unit = np.spacing(np.abs(tap)).astype(np.float64)
        allowed = np.abs(step) <= 1.001 * unit
        kernels[rows, column] = np.where(allowed, moved, tap)
        error = np.where(allowed, error - step, error)
    return kernels.reshape(weights.shape)
