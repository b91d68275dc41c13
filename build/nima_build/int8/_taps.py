"""What flows through a graph: named tensors for one image after the other."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx.utils import Extractor

from nima_client.contract import PIXELS

Array = npt.NDArray[Any]
KEPT_BYTES = 1 << 30
"""Of the values of a tensor for all images, while a graph is run tensor by tensor."""


def tapped(
    model: onnx.ModelProto,
    names: Sequence[str],
    values: Sequence[Array],
    source: str = PIXELS,
) -> Iterator[list[Array]]:
    """The tensors ``names`` for each image; only what leads to them is run.

    Args:
        model: graph with the input PIXELS.
        names: tensors inside it.
        values: of the tensor ``source``, one of each image; of PIXELS uint8 ``[1, S, S, 3]``.
        source: what the graph is run from; all that leads to ``names`` must pass through it.
    """
    known = {info.name for info in [*model.graph.value_info, *model.graph.output]}
    for name in {source, *names} - {PIXELS}:
        if name not in known:
            # The extractor wants each of its ends to be declared.
            model.graph.value_info.append(
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            )
    part = Extractor(model).extract_model([source], list(names))
    options = onnxruntime.SessionOptions()
    # Level 1 fuses nothing into integer kernels: what is seen are the graph's own FP32 values.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(
        part.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    for value in values:
        yield session.run(list(names), {source: value})


class Stream:
    """One tensor after another, in the order they are made, each run from the last narrow place.

    A narrow place is a tensor through which everything after it passes. Its values are kept for
    every image, so that a deep graph is not run from its beginning for each of its tensors; what is
    asked for must not change what lies before.

    Args:
        model: graph with the input PIXELS.
        images: uint8 ``[1, S, S, 3]`` each.
    """

    def __init__(self, model: onnx.ModelProto, images: Sequence[Array]) -> None:
        self._model, self._source, self._values = model, PIXELS, list(images)
        self._narrow = narrow_places(model.graph)

    def at(self, name: str) -> Iterator[Array]:
        """The tensor ``name`` for each image."""
        self._advance(name)
        if name == self._source:
            return iter(self._values)
        return (value for (value,) in tapped(self._model, [name], self._values, self._source))

    def _advance(self, name: str) -> None:
        place = self._narrow.get(name, self._source)
        if place == self._source:
            return
        values = tapped(self._model, [place], self._values, self._source)
        first = next(values)[0]
        if first.nbytes * len(self._values) > KEPT_BYTES:
            return
        rest = (value for (value,) in values)
        # The old values are read one ahead of where the new ones are put.
        for index, value in enumerate(itertools.chain([first], rest)):
            self._values[index] = value
        self._source = place


def narrow_places(graph: onnx.GraphProto) -> dict[str, str]:
    """For each tensor that depends on PIXELS the last narrow place on the way to it, or itself."""
    uses = Counter(name for node in graph.node for name in set(node.input))
    uses.update(output.name for output in graph.output)
    waited, last, found = {PIXELS: uses[PIXELS]}, PIXELS, {PIXELS: PIXELS}
    for node in graph.node:
        inputs = waited.keys() & set(node.input)
        if not inputs:
            continue
        for name in inputs:
            waited[name] -= 1
            if waited[name] == 0:
                del waited[name]
        waited.update((name, uses[name]) for name in node.output if uses[name])
        if len(waited) == 1:
            (last,) = waited
        found.update((name, last) for name in node.output)
    return found


def constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The initializers of a graph by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def own_constants(model: onnx.ModelProto) -> None:
    """Give every convolution weights and a bias of its own, in place.

    Exporters keep equal ones once (all zeros, say); stretched and rounded, they are not equal.
    """
    tensors = constants(model)
    readers = Counter(name for node in model.graph.node for name in node.input)
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if node.op_type == "Conv" and name in tensors and readers[name] > 1:
                copy = model.graph.initializer.add()
                copy.CopyFrom(tensors[name])
                copy.name = node.input[place] = f"{name}/{node.name}"
                readers[name] -= 1


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
