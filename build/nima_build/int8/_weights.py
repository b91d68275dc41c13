"""Weights fitted such that a convolution's output moves least, not each weight by itself.

MobileNet v1 as published has depthwise filters with weights up to 33 that nearly cancel; rounded to
the nearest of 255 steps they no longer do. Three things are done about it, convolution after
convolution, so that each sees what those before it have done:

1. its weights are fitted to give what they gave for the true inputs, from the quantised ones;
2. they are rounded one input at a time, and what an error does is made up for by the weights not
   yet rounded, since neighbouring inputs are alike (Frantar et al., 2022, "GPTQ", algorithm 1);
3. the mean shift that is left goes into the bias (Nagel et al., 2019, "Data-free quantization
   through weight equalization and bias correction", section 4.2).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view

from nima_build.int8._taps import Array, Stream, attribute, constants, replace_constant

# Without VNNI, CPUs add two products of a matrix multiplication into 16 bits: 2 x 255 x 64 fit.
# A depthwise convolution is no such multiplication and has the whole byte.
LARGEST = 64
LARGEST_DEPTHWISE = 127
# Shares of the mean square of an input: how dear it is to leave the given weights, and what keeps
# the moments invertible.
_FIT_DAMPING = 1e-2
_ROUND_DAMPING = 1e-4
_LEAST_MOMENT = 1e-9
# Places of an image at which inputs are looked at: as many as that many products allow.
_PLACES, _LEAST_PLACES, _PRODUCTS = 1024, 128, 300_000_000
_BLOCK = 64


def fit_weights(full: onnx.ModelProto, quantised: onnx.ModelProto, images: Sequence[Array]) -> None:
    """Round the weights of every quantised convolution anew, in place, in the order they run.

    Args:
        full: the FP32 graph.
        quantised: its QDQ graph, from :func:`onnxruntime.quantization.quantize_static`.
        images: uint8 ``[1, S, S, 3]`` each.
    """
    originals = {node.name: node for node in full.graph.node if node.op_type == "Conv"}
    weights, tensors = constants(full), constants(quantised)
    makers = {output: node for node in quantised.graph.node for output in node.output}
    convolutions = [
        node
        for node in quantised.graph.node
        if node.op_type == "Conv" and node.input[1] in makers and len(node.input) > 2
    ]
    rng = np.random.default_rng(0)
    true, seen = Stream(full, images), Stream(quantised, images)
    for node in convolutions:
        original = originals[node.name]
        weight, bias = (onnx.numpy_helper.to_array(weights[n]) for n in original.input[1:3])
        streams = zip(true.at(original.input[0]), seen.at(node.input[0]), strict=True)
        inputs = _inputs(streams, node, weight.shape, rng)
        groups, size = inputs.seen.shape
        rows = weight.reshape(groups, -1, size)
        largest = LARGEST_DEPTHWISE if weight.shape[1] == 1 else LARGEST
        fitted = refitted(rows, inputs.moments, inputs.cross)
        steps, scale = rounded(fitted, inputs.moments, largest)
        values, scales, _ = (tensors[name] for name in makers[node.input[1]].input)
        replace_constant(values, steps.reshape(weight.shape))
        replace_constant(scales, scale.reshape(-1))
        shift = np.einsum("gok,gk->go", rows, inputs.true)
        shift -= np.einsum("gok,gk->go", steps * scale, inputs.seen)
        # Integer sums are in steps of input and weight: so must the bias be.
        biases, bias_scales, _ = (tensors[name] for name in makers[node.input[2]].input)
        step = onnx.numpy_helper.to_array(tensors[makers[node.input[0]].input[1]])
        bias_scale = (scale.reshape(-1) * float(step)).astype(np.float32)
        replace_constant(bias_scales, bias_scale)
        replace_constant(biases, np.rint((bias + shift.reshape(-1)) / bias_scale))


def refitted(weight: Array, moments: Array, cross: Array) -> Array:
    """The weights that make of the quantised inputs what ``weight`` makes of the true ones.

    Args:
        weight: ``[G, O, K]``: groups, outputs of a group, inputs of an output.
        moments: second moments of the quantised inputs, FP64 ``[G, K, K]``.
        cross: those of quantised inputs (rows) with true ones, FP64 ``[G, K, K]``.

    Returns:
        FP64 ``[G, O, K]``, by ridge regression towards ``weight``.
    """
    damping = _damping(moments, _FIT_DAMPING)
    wanted = (cross + damping) @ weight.transpose(0, 2, 1)
    fitted: Array = np.linalg.solve(moments + damping, wanted).transpose(0, 2, 1)
    return fitted


def rounded(weight: Array, moments: Array, largest: int) -> tuple[Array, Array]:
    """Whole steps for ``weight`` and the size of a step, for the smallest change of the output.

    Args:
        weight: ``[G, O, K]``: groups, outputs of a group, inputs of an output.
        moments: second moments of the inputs, FP64 ``[G, K, K]``.
        largest: steps to either side.

    Returns:
        Steps, whole numbers within ±``largest``, ``[G, O, K]``, and their size ``[G, O, 1]``.
    """
    reach = np.abs(weight).max(2, keepdims=True)
    # A dead channel has a bias only, which 32 bits must hold in steps of this size.
    scale = np.maximum(reach, max(1e-5 * reach.max(), _LEAST_MOMENT)) / largest
    order = np.argsort(-np.einsum("gkk->k", moments))
    left = weight[:, :, order].astype(np.float64)
    damped = (moments + _damping(moments, _ROUND_DAMPING))[:, order][:, :, order]
    # The upper Cholesky factor of the inverse says how to spread each error over what is left.
    upper = np.linalg.cholesky(np.linalg.inv(damped)).transpose(0, 2, 1)
    steps, errors = np.empty_like(left), np.empty_like(left)
    for begin in range(0, weight.shape[2], _BLOCK):
        end = min(begin + _BLOCK, weight.shape[2])
        for k in range(begin, end):
            steps[:, :, k] = np.clip(np.rint(left[:, :, k] / scale[:, :, 0]), -largest, largest)
            error = (left[:, :, k] - steps[:, :, k] * scale[:, :, 0]) / upper[:, k, k, None]
            left[:, :, k + 1 : end] -= error[:, :, None] * upper[:, None, k, k + 1 : end]
            errors[:, :, k] = error
        # What a block does to those behind it is one matrix product.
        left[:, :, end:] -= errors[:, :, begin:end] @ upper[:, begin:end, end:]
    result = np.empty_like(steps)
    result[:, :, order] = steps
    return result, scale


def _damping(moments: Array, share: float) -> Array:
    count = moments.shape[1]
    size = np.maximum(share * np.einsum("gkk->g", moments) / count, _LEAST_MOMENT)
    damping: Array = np.eye(count) * size[:, None, None]
    return damping


@dataclass(frozen=True)
class _Inputs:
    """What a convolution multiplies its weights with, over images and places, FP64.

    Attributes:
        moments: second moments of the quantised inputs, ``[G, K, K]``.
        cross: those of quantised (rows) with true inputs, ``[G, K, K]``.
        seen: means of the quantised inputs, ``[G, K]``.
        true: means of the true ones, ``[G, K]``.
    """

    moments: Array
    cross: Array
    seen: Array
    true: Array


def _inputs(
    images: Iterable[tuple[Array, Array]],
    node: onnx.NodeProto,
    shape: tuple[int, ...],
    rng: np.random.Generator,
) -> _Inputs:
    """Of a convolution with weights of a shape; ``images`` are its true and quantised inputs."""
    group = attribute(node, "group", 1)
    size = int(np.prod(shape[1:]))
    moments, cross = np.zeros((2, group, size, size))
    means = np.zeros((2, group, size))
    count = 0
    for true, seen in images:
        count += 1
        views = _views(np.concatenate([true[0], seen[0]]), node, shape[2:])
        rows, columns, *kernel = views.shape[1:]
        # Means want every place, since borders differ; moments do with some. Weight by weight,
        # since numpy is slow where the innermost axis is as short as a kernel.
        every = [
            views[:, :, :, i, j].mean((1, 2), dtype=np.float64) for i, j in np.ndindex(*kernel)
        ]
        means += np.stack(every, axis=-1).reshape(means.shape)
        # Products grow with the square of the kernel's inputs; what they need does not.
        wanted = min(_PLACES, max(_LEAST_PLACES, _PRODUCTS // size**2))
        places = min(wanted, rows * columns)
        chosen = rng.choice(rows * columns, places, replace=False)
        picked = views[:, chosen // columns, chosen % columns]
        picked = picked.reshape(2, group, -1, places, int(np.prod(shape[2:])))
        t, x = picked.transpose(0, 1, 3, 2, 4).reshape(2, group, places, size).astype(np.float64)
        moments += x.transpose(0, 2, 1) @ x / places
        cross += x.transpose(0, 2, 1) @ t / places
    return _Inputs(moments / count, cross / count, means[1] / count, means[0] / count)


def _views(x: Array, node: onnx.NodeProto, kernel: tuple[int, ...]) -> Array:
    """What the kernel sees at each place of ``[C, H, W]``: ``[C, rows, columns, k, k]``."""
    top, left, bottom, right = attribute(node, "pads", [0, 0, 0, 0])
    x = np.pad(x, ((0, 0), (top, bottom), (left, right)))
    strides, spread = attribute(node, "strides", [1, 1]), attribute(node, "dilations", [1, 1])
    window = tuple((k - 1) * d + 1 for k, d in zip(kernel, spread))
    windows = sliding_window_view(x, window, (1, 2))  # type: ignore[call-overload]
    views = windows[:, :: strides[0], :: strides[1]]
    return views[:, :, :, :: spread[0], :: spread[1]]
