"""Channels of one range, so that one scale for all of them wastes no steps.

A tensor has one scale for all of its channels: where one reaches 6 and another 0.5, the second has
21 steps of 255. Between a convolution and the next, each channel can be stretched in the first and
shrunk in the second without any change of the result (Nagel et al., 2019, "Data-free quantization
through weight equalization and bias correction", section 4.1; here with measured ranges).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from nima_build.int8._taps import Array, attribute, constants, replace_constant, tapped

_CLAMPS = ("Clip", "Relu")
# A channel that never gets far is not stretched without end.
_LARGEST_FACTOR = 64.0


def equalise(model: onnx.ModelProto, images: Sequence[Array]) -> int:
    """Stretch the channels between convolutions to the largest of their tensor, in place.

    What a channel never exceeded for these images it cannot exceed afterwards where a Clip follows:
    quantisation to the range seen would cut it as well.

    Args:
        model: FP32 graph, batch norms folded.
        images: uint8 ``[1, S, S, 3]`` each.

    Returns:
        The number of tensors treated.
    """
    found = _between(model)
    if not found:
        return 0
    names = [clamp.output[0] for _, clamp, _ in found]
    highest: list[Array] = []
    for values in tapped(model, names, images):
        peaks = [value.max((0, 2, 3)) for value in values]
        highest = [np.maximum(a, b) for a, b in zip(highest, peaks)] if highest else peaks
    tensors = constants(model)
    for (producer, _, consumers), reached in zip(found, highest, strict=True):
        top = reached.max()
        factor = np.minimum(top / np.maximum(reached, 1e-9), _LARGEST_FACTOR)
        factor[reached <= 0] = 1.0
        for name in producer.input[1:3]:
            value = onnx.numpy_helper.to_array(tensors[name])
            replace_constant(tensors[name], value * factor.reshape(-1, *[1] * (value.ndim - 1)))
        for consumer in consumers:
            weight = tensors[consumer.input[1]]
            value = onnx.numpy_helper.to_array(weight)
            axis = 0 if attribute(consumer, "group", 1) > 1 else 1
            shape = [-1 if i == axis else 1 for i in range(value.ndim)]
            replace_constant(weight, value / factor.reshape(shape))
    return len(found)


def _between(
    model: onnx.ModelProto,
) -> list[tuple[onnx.NodeProto, onnx.NodeProto, list[onnx.NodeProto]]]:
    """Convolution, clamp and the convolutions that read it, where nothing else does."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {output.name for output in model.graph.output}
    found = []
    for node in model.graph.node:
        clamps = readers.get(node.output[0], []) if node.op_type == "Conv" else []
        if len(clamps) != 1 or clamps[0].op_type not in _CLAMPS or len(node.input) < 3:
            continue
        consumers = readers.get(clamps[0].output[0], [])
        shared = any(len(readers[n.input[1]]) > 1 for n in [node, *consumers] if len(n.input) > 1)
        if (
            consumers
            and not shared
            and clamps[0].output[0] not in outputs
            and all(c.op_type == "Conv" and _plain_or_depthwise(model, c) for c in consumers)
        ):
            found.append((node, clamps[0], consumers))
    return found


def _plain_or_depthwise(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    group = attribute(node, "group", 1)
    return group == 1 or list(constants(model)[node.input[1]].dims)[:2] == [group, 1]
