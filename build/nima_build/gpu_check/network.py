"""Steps of ``make gpu-check`` that run the network: images per second, and scores that hold."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from nima_build.engine import build_engine
from nima_build.engine_manifest import PLAN_NAME, EngineOptions
from nima_build.gpu import find_gpus
from nima_build.gpu_check.context import Context, Skip, batch_of, rate
from nima_build.inductor import PackageOptions, build_package, load_torch, open_package
from nima_build.parity import compare, onnx_scorer
from nima_build.paths import BUNDLED_CHECKPOINT
from nima_build.repository import ONNX_NAME
from nima_build.tensorrt_api import EngineError, load_runtime
from nima_client._package import PACKAGE_NAME
from nima_client.contract import MAX_BATCH_SIZE
from nima_client.preprocess import preprocess


def check_cpu(context: Context) -> dict[str, Any]:
    """ONNX Runtime and the reference preprocessing on one core: what a GPU is compared with."""
    score = onnx_scorer(context.network / ONNX_NAME)
    image, spec = context.pixels[:1], context.metadata.spec

    def prepare() -> None:
        for data in context.jpegs:
            preprocess(data, spec)

    return {
        "network_images_per_second": rate(lambda: score(image), 1),
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
    batch = torch.from_numpy(batch_of(context.pixels, MAX_BATCH_SIZE)).cuda()
    return {
        "parity": asdict(result),
        "network_images_per_second": rate(lambda: run(batch), MAX_BATCH_SIZE),
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
            runner.upload(batch_of(context.pixels, size))
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
        pixels = batch_of(context.pixels, size)
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
