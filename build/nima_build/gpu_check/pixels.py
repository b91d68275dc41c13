"""Steps of ``make gpu-check`` that decode and resize: pixels held against the reference."""

from __future__ import annotations

import io
from dataclasses import asdict
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from nima_build.gpu import find_gpus, is_installed
from nima_build.gpu_check.context import Context, Skip, rate
from nima_build.gpu_check.formats import compare_formats
from nima_build.parity import compare, onnx_scorer
from nima_build.repository import ONNX_NAME, default_repository, load_module
from nima_client.contract import MAX_BATCH_SIZE, PREPROCESS_MODEL
from nima_client.preprocess import DEFAULT_LIMITS, PreprocessSpec, preprocess

MEAN_DIFFERENCE = 1.0
"""Of GPU pixels from the reference, in 1/255: what its own reduced-scale decoding is held to."""
MAX_DIFFERENCE = 16
"""Of CV-CUDA's pixels from the reference, in 1/255; likewise."""
MAX_DIFFERENCE_DALI = 40
"""Of DALI's: on the border it repeats the last pixel where Pillow narrows its filter."""


def check_gpu_preprocessing(context: Context) -> dict[str, Any]:
    """What the profile ``default`` decodes and resizes with, against the reference."""
    _require_gpu_preprocessing()
    return measure_gpu_pixels(context, 0)


def _require_gpu_preprocessing() -> None:
    for name in ("nvidia.nvimgcodec", "cvcuda"):
        if not is_installed(name):
            raise Skip(f"{name} is not installed")
    if not find_gpus():
        raise Skip("there is no GPU")


def measure_gpu_pixels(context: Context, device_id: int | None) -> dict[str, Any]:
    """Pixels, scores and rates of nvImageCodec and CV-CUDA on a device (None: CPU decoders)."""
    module = model_file("gpu_pixels.py")
    spec = full_decode(context.metadata.spec)
    count = len(context.jpegs)
    pixels = module.on_gpu(spec, DEFAULT_LIMITS, device_id, host_below=count + 1, batch=count)
    decoder = module.JpegDecoder(device_id, count)
    (found,) = pixels([context.jpegs])
    report = judge_pixels(context, found, MAX_DIFFERENCE)
    return {
        **report,
        "decode_images_per_second": rate(lambda: decoder.decode(context.jpegs), count),
        "preprocess_images_per_second": rate(lambda: pixels([context.jpegs]), count),
    }


def check_gpu_formats(context: Context) -> dict[str, Any]:
    """Every kind of file through the preprocessing of ``default``, against the reference."""
    _require_gpu_preprocessing()
    return measure_gpu_formats(context, 0)


def measure_gpu_formats(context: Context, device_id: int | None) -> dict[str, Any]:
    """Kinds of files on a device (None: CPU decoders), and which are further off than allowed."""
    spec = full_decode(context.metadata.spec)
    failures: list[Exception] = []
    pixels = model_file("gpu_pixels.py").on_gpu(
        spec, DEFAULT_LIMITS, device_id, failures.append, host_below=MAX_BATCH_SIZE
    )
    found = compare_formats(pixels, Image.open(io.BytesIO(context.jpegs[0])).convert("RGB"), spec)
    far = [
        name
        for name, result in found.items()
        if result.get("refused") != result.get("reference")
        or result.get("max", 0) > MAX_DIFFERENCE
        or result.get("mean", 0) > MEAN_DIFFERENCE
    ]
    return {
        "kinds": found,
        "allowed": {"max": MAX_DIFFERENCE, "mean": MEAN_DIFFERENCE},
        "too_far": far,
        "failures": [str(error) for error in failures],
        "failed": bool(far or failures),
    }


def check_dali(context: Context) -> dict[str, Any]:
    """The pipeline of the profile ``dali``, against the reference."""
    if not is_installed("nvidia.dali"):
        raise Skip("nvidia-dali is not installed")
    if not find_gpus():
        raise Skip("there is no GPU (its CPU half is covered by the tests)")
    return measure_dali(context, device="mixed", device_id=0)


def measure_dali(context: Context, **device: Any) -> dict[str, Any]:
    """Pixels, scores and the rate of the DALI pipeline; ``device`` goes to the pipeline."""
    module = model_file("dali.py")
    count = len(context.jpegs)
    pipeline = module.pipeline(batch_size=count, prefetch_queue_depth=1, **device)
    pipeline.build()

    def run() -> npt.NDArray[Any]:
        pipeline.feed_input("IMAGE", [np.frombuffer(data, np.uint8) for data in context.jpegs])
        (batch,) = pipeline.run()
        return np.stack([np.asarray(image) for image in batch.as_cpu()])

    report = judge_pixels(context, run(), MAX_DIFFERENCE_DALI)
    return {**report, "preprocess_images_per_second": rate(run, count)}


def judge_pixels(context: Context, actual: npt.NDArray[Any], largest: int) -> dict[str, Any]:
    """Hold pixels uint8 ``[N, S, S, 3]``, and their scores, against those of the reference.

    Pixels are compared with full-size decoding, which is what GPU decoders do; scores with those of
    the reference as it is served.
    """
    spec = full_decode(context.metadata.spec)
    expected = np.stack([preprocess(data, spec) for data in context.jpegs]).astype(int)
    difference = np.abs(expected - actual)
    score = onnx_scorer(context.network / ONNX_NAME)
    served = np.stack([preprocess(data, context.metadata.spec) for data in context.jpegs])
    result = compare("triton-gpu", context.names, score(served), score(actual))
    close = difference.mean() <= MEAN_DIFFERENCE and difference.max() <= largest
    return {
        "max_difference": int(difference.max()),
        "mean_difference": round(float(difference.mean()), 4),
        "allowed": {"max": largest, "mean": MEAN_DIFFERENCE},
        "parity": asdict(result),
        "failed": not close or result.status == "fail",
    }


def full_decode(spec: PreprocessSpec) -> PreprocessSpec:
    """The specification without decoding at a reduced scale."""
    return PreprocessSpec.from_dict({**spec.to_dict(), "jpeg_oversampling": 0})


def model_file(name: str) -> ModuleType:
    """A Python file of ``nima_preprocess``, as a module."""
    return load_module(default_repository() / PREPROCESS_MODEL / "1" / name)
