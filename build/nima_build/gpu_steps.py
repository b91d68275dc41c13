"""The steps of ``make gpu-check``: what each measures, and what it holds it against.

Rates are images per second, each measured for :data:`SECONDS` after a run to warm up.
"""

from __future__ import annotations

import importlib.util
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from nima_build.engine import build_engine
from nima_build.engine_manifest import PLAN_NAME, EngineOptions
from nima_build.gpu import find_gpus, is_installed
from nima_build.gpu_formats import compare_formats
from nima_build.inductor import PackageOptions, build_package, load_torch, open_package
from nima_build.metadata import ModelMetadata
from nima_build.parity import compare, onnx_scorer
from nima_build.paths import BUNDLED_CHECKPOINT
from nima_build.repository import ONNX_NAME, default_repository, load_module
from nima_build.tensorrt_api import EngineError, load_runtime
from nima_client._package import PACKAGE_NAME
from nima_client.contract import MAX_BATCH_SIZE, PREPROCESS_MODEL
from nima_client.preprocess import DEFAULT_LIMITS, PreprocessSpec, preprocess

SECONDS = 2.0
"""How long each rate is measured."""
MEAN_DIFFERENCE = 1.0
"""Of GPU pixels from the reference, in 1/255: what its own reduced-scale decoding is held to."""
MAX_DIFFERENCE = 16
"""Of CV-CUDA's pixels from the reference, in 1/255; likewise."""
MAX_DIFFERENCE_DALI = 40
"""Of DALI's: on the border it repeats the last pixel where Pillow narrows its filter."""

Step = Callable[["Context"], dict[str, Any]]


class Skip(Exception):
    """A step that cannot run here; the message says why."""


@dataclass(frozen=True)
class Context:
    """What every step works on.

    Attributes:
        network: folder of the exported network.
        metadata: its facts.
        names: of the photos.
        jpegs: the photos as JPEG files.
        pixels: the photos preprocessed by the reference, uint8 ``[N, S, S, 3]``.
        scratch: folder for an engine.
    """

    network: Path
    metadata: ModelMetadata
    names: list[str]
    jpegs: list[bytes]
    pixels: npt.NDArray[Any]
    scratch: Path


def rate(work: Callable[[], object], images: int) -> float:
    """Images per second of ``work``, after one run to warm up."""
    work()
    runs, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < SECONDS:
        work()
        runs += 1
    return round(images * runs / elapsed, 1)


def check_cpu(context: Context) -> dict[str, Any]:
    """ONNX Runtime and the reference preprocessing on one core: what a GPU is compared with."""
    score = onnx_scorer(context.network / ONNX_NAME)
    image, spec = context.pixels[:1], context.metadata.spec

    def prepare() -> None:
        for data in context.jpegs:
            preprocess(data, spec)

    return {
        "network_images_per_second": rate(lambda: _discard(score(image)), 1),
        "preprocess_images_per_second": rate(prepare, len(context.jpegs)),
    }


def check_pytorch(context: Context) -> dict[str, Any]:
    """The network in FP16 (autocast) on CUDA."""
    if importlib.util.find_spec("torch") is None:
        raise Skip("PyTorch is not installed")
    import torch

    if not torch.cuda.is_available():
        raise Skip(f"PyTorch {torch.__version__} finds no CUDA device")
    from nima_build.graph import ScoringGraph
    from nima_training.checkpoint import load_checkpoint

    if not BUNDLED_CHECKPOINT.is_dir():
        raise Skip("no bundled checkpoint in this tree")
    loaded = load_checkpoint(BUNDLED_CHECKPOINT)
    graph = ScoringGraph(loaded.model, loaded.spec).cuda()

    def run(pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cuda", torch.float16):
            distribution: torch.Tensor = graph(pixels)[0]
        torch.cuda.synchronize()
        return distribution

    actual = run(torch.from_numpy(context.pixels).cuda()).float().cpu().numpy()
    expected = onnx_scorer(context.network / ONNX_NAME)(context.pixels)
    result = compare("onnx-fp16", context.names, expected, actual)
    batch = torch.from_numpy(_batch(context.pixels, MAX_BATCH_SIZE)).cuda()
    return {
        "parity": asdict(result),
        "network_images_per_second": rate(lambda: _discard(run(batch)), MAX_BATCH_SIZE),
        "failed": result.status == "fail",
    }


def check_tensorrt(context: Context) -> dict[str, Any]:
    """Build the engine, compare it with the FP32 graph, and measure it."""
    try:
        runtime = load_runtime("tensorrt")
    except EngineError as error:
        raise Skip(str(error)) from None
    if not find_gpus():
        raise Skip(f"TensorRT {runtime.__version__} is installed, but there is no GPU")
    from nima_build.engine_runner import EngineRunner

    plan = context.scratch / PLAN_NAME
    start = time.perf_counter()
    manifest, _ = build_engine(context.network / ONNX_NAME, plan, EngineOptions())
    seconds = time.perf_counter() - start
    runner = EngineRunner(plan)
    try:
        actual = runner.run(context.pixels)[0]
        expected = onnx_scorer(context.network / ONNX_NAME)(context.pixels)
        result = compare("tensorrt", context.names, expected, actual)
        rates = {}
        for size in (1, 8, MAX_BATCH_SIZE):
            runner.upload(_batch(context.pixels, size))
            rates[str(size)] = rate(runner.execute, size)
    finally:
        runner.close()
    return {
        "manifest": asdict(manifest),
        "build_seconds": round(seconds, 1),
        "engine_bytes": plan.stat().st_size,
        "parity": asdict(result),
        "network_images_per_second_by_batch": rates,
        "failed": result.status == "fail",
    }


def check_inductor(context: Context) -> dict[str, Any]:
    """Compile the package of PyTorch, compare it with the FP32 graph, and measure it."""
    try:
        load_torch()
    except EngineError as error:
        raise Skip(str(error)) from None
    if not BUNDLED_CHECKPOINT.is_dir():
        raise Skip("no bundled checkpoint in this tree")
    return measure_inductor(context, BUNDLED_CHECKPOINT)


def measure_inductor(
    context: Context,
    checkpoint: Path,
    device: str = "cuda",
    sizes: Sequence[int] = (1, 8, MAX_BATCH_SIZE, 128),
) -> dict[str, Any]:
    """Seconds to compile a checkpoint, its scores, and its rates with scores copied to the CPU.

    Pixels lie on the device, or are copied to it (``from_cpu``): both happen in Triton.
    """
    graph, package = context.network / ONNX_NAME, context.scratch / PACKAGE_NAME
    options = PackageOptions("fp16" if device == "cuda" else "fp32")
    start = time.perf_counter()
    manifest, _ = build_package(checkpoint, graph, package, options, device=device)
    built = time.perf_counter()
    compiled = open_package(package, device)
    opened = time.perf_counter()
    actual = compiled.score(context.pixels)[:, :10]
    result = compare("inductor", context.names, onnx_scorer(graph)(context.pixels), actual)
    rates, from_cpu = {}, {}
    for size in sizes:
        pixels = _batch(context.pixels, size)
        rates[str(size)] = rate(partial(compiled, [compiled.upload(pixels)]), size)
        from_cpu[str(size)] = rate(partial(compiled.score, pixels), size)
    return {
        "manifest": asdict(manifest),
        "build_seconds": round(built - start, 1),
        "open_seconds": round(opened - built, 1),
        "package_bytes": package.stat().st_size,
        "cuda_graphs": compiled.graph_error or len(compiled.sizes),
        "parity": asdict(result),
        "images_per_second_by_batch": rates,
        "images_per_second_by_batch_from_cpu": from_cpu,
        "failed": result.status == "fail",
    }


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
        "decode_images_per_second": rate(lambda: _discard(decoder.decode(context.jpegs)), count),
        "preprocess_images_per_second": rate(lambda: _discard(pixels([context.jpegs])), count),
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
    return {**report, "preprocess_images_per_second": rate(lambda: _discard(run()), count)}


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


STEPS: dict[str, Step] = {
    "cpu": check_cpu,
    "pytorch": check_pytorch,
    "tensorrt": check_tensorrt,
    "inductor": check_inductor,
    "gpu_preprocessing": check_gpu_preprocessing,
    "gpu_formats": check_gpu_formats,
    "dali": check_dali,
}


def full_decode(spec: PreprocessSpec) -> PreprocessSpec:
    """The specification without decoding at a reduced scale."""
    return PreprocessSpec.from_dict({**spec.to_dict(), "jpeg_oversampling": 0})


def _batch(pixels: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    return np.resize(pixels, (size, *pixels.shape[1:]))


def _discard(_value: object) -> None:
    return None


def model_file(name: str) -> ModuleType:
    """A Python file of ``nima_preprocess``, as a module."""
    return load_module(default_repository() / PREPROCESS_MODEL / "1" / name)
