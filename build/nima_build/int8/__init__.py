"""The int8 graph for CPUs: static QDQ, fitted to real photos, FP32 softmax and moments."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from nima_build.half import STEM_CONVOLUTIONS
from nima_build.int8._ranges import equalise
from nima_build.int8._taps import constants, own_constants
from nima_build.int8._weights import fit_weights
from nima_build.metadata import ExportError
from nima_client.contract import PIXELS
from nima_client.library.formats import is_photo
from nima_client.preprocess import ImageRejected, PreprocessSpec, preprocess

CALIBRATION_PHOTOS = 200
_IN_INT8 = ["Conv", "Clip", "Relu", "Add", "GlobalAveragePool"]


class _Photos(CalibrationDataReader):  # type: ignore[misc]
    """Feeds calibration pixels, one image at a time."""

    def __init__(self, batches: Sequence[npt.NDArray[Any]]) -> None:
        self._batches: Iterator[npt.NDArray[Any]] = iter(batches)

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        """The next image, or None at the end."""
        pixels = next(self._batches, None)
        return None if pixels is None else {PIXELS: pixels}


def to_int8(model: onnx.ModelProto, pixels: npt.NDArray[Any]) -> onnx.ModelProto:
    """Quantise a graph of `nima export`.

    Activations are uint8, weights int8 per output channel with a range of 7 bits, since CPUs
    without VNNI add two 8-bit products into 16 bits and would saturate (depthwise ones have 8). The
    first two convolutions stay FP32, as in the FP16 graph and for the same reason. Of the others
    the channels are brought to one range (:func:`~nima_build.int8._ranges.equalise`), then the
    weights are rounded for their outputs' sake (:func:`~nima_build.int8._weights.fit_weights`).
    Only convolutions, additions and what lies between them are quantised.

    Args:
        model: FP32 graph.
        pixels: calibration images, uint8 ``[N, S, S, 3]``.

    Returns:
        The quantised graph, with the metadata of the FP32 one.

    Raises:
        ExportError: a network of matrix multiplications (Swin-T, ConvNeXt-T).
    """
    _check_convolutional(model)
    images = [image[None] for image in pixels]
    with tempfile.TemporaryDirectory() as folder:
        source, prepared, quantised = (Path(folder) / name for name in ("fp32", "prepared", "int8"))
        onnx.save(model, source)
        # The shapes are fixed but for the batch: symbolic inference has nothing to add.
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        full = onnx.load(prepared)
        own_constants(full)
        equalise(full, images)
        onnx.save(full, prepared)
        quantize_static(
            str(prepared),
            str(quantised),
            _Photos(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            op_types_to_quantize=_IN_INT8,
            nodes_to_exclude=_in_fp32(full),
            calibrate_method=CalibrationMethod.MinMax,
        )
        result = onnx.load(quantised)
    fit_weights(full, result, images)
    onnx.checker.check_model(result)
    return result


def _check_convolutional(model: onnx.ModelProto) -> None:
    """Refuse a network that would have its sums rounded and its work left as it is.

    Of the multiply-adds of Swin-T none, of those of ConvNeXt-T 6 % are in the convolutions
    quantised; of any other backbone's 86 % and more.
    """
    operators = [node.op_type for node in model.graph.node]
    if operators.count("MatMul") > operators.count("Conv") - STEM_CONVOLUTIONS:
        raise ExportError(
            "this network is matrix multiplications for the most part, which int8 leaves in FP32: "
            "it would be no faster and less exact. Export it without int8"
        )


def _in_fp32(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that are left alone: the stem, and biases of what is not quantised."""
    known = constants(model)
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    biases = [
        node.name
        for node in model.graph.node
        if node.op_type == "Add" and any(name in known for name in node.input)
    ]
    return convolutions[:STEM_CONVOLUTIONS] + biases


def calibration_pixels(photos: Path, spec: PreprocessSpec) -> npt.NDArray[Any]:
    """Up to :data:`CALIBRATION_PHOTOS` photos of a folder, preprocessed: uint8 ``[N, S, S, 3]``.

    They are evenly spaced in the sorted listing of the folder and its subfolders, but for what only
    has the name of a photo: links to nothing, folders, pipes.

    Raises:
        ExportError: no photo there can be decoded.
        OSError: a photo cannot be read.
    """
    files = sorted(p for p in photos.rglob("*") if is_photo(p.name) and p.is_file())
    # Spread over the folder: neighbours in a listing are often of one series.
    count = min(CALIBRATION_PHOTOS, len(files))
    images = []
    for path in (files[i * len(files) // count] for i in range(count)):
        try:
            images.append(preprocess(path.read_bytes(), spec))
        except ImageRejected:
            continue
    if not images:
        raise ExportError(f"no photo in {photos} can be decoded: name a folder of real photos")
    return np.stack(images)
