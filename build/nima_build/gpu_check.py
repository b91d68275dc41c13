"""``make gpu-check``: what of the GPU path works on this machine, and how fast; one JSON.

Every step is bounded, says what it found and goes on when something is not there. A step is
``ok``, ``skip`` (with the reason) or ``fail``; the exit status is 1 when any failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from nima_build.engine import EngineError, build_engine, load_runtime
from nima_build.engine_manifest import PLAN_NAME, EngineOptions
from nima_build.golden import golden_photos
from nima_build.gpu import find_gpus
from nima_build.metadata import METADATA_NAME, ArtefactError, ModelMetadata
from nima_build.parity import compare, onnx_scorer, read_pixels
from nima_build.paths import BUNDLED_CHECKPOINT
from nima_build.repository import ONNX_NAME, default_repository
from nima_client._files import write_atomic
from nima_client.contract import MAX_BATCH_SIZE, NETWORK_MODEL, PREPROCESS_MODEL
from nima_client.preprocess import DEFAULT_LIMITS, PreprocessSpec, preprocess

SECONDS = 2.0
"""How long each rate is measured."""
Step = Callable[["Context"], dict[str, Any]]


class Skip(Exception):
    """A step that cannot run here; the message says why."""


@dataclass(frozen=True)
class Context:
    """What every step works on."""

    network: Path
    metadata: ModelMetadata
    photos: list[Path]
    jpegs: list[bytes]
    pixels: npt.NDArray[Any]
    scratch: Path


def rate(work: Callable[[], None], images: int) -> float:
    """Images per second of ``work``, after one run to warm up."""
    work()
    runs, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < SECONDS:
        work()
        runs += 1
    return round(images * runs / elapsed, 1)


def check_cpu(context: Context) -> dict[str, Any]:
    """ONNX Runtime and the reference decoder on one core: what a GPU is compared with."""
    score = onnx_scorer(context.network / ONNX_NAME)
    image, spec = context.pixels[:1], context.metadata.spec

    def decode() -> None:
        for data in context.jpegs:
            preprocess(data, spec)

    return {
        "network_images_per_second": rate(lambda: _discard(score(image)), 1),
        "decode_images_per_second": rate(decode, len(context.jpegs)),
    }


def check_pytorch(context: Context) -> dict[str, Any]:
    """The network in FP16 on CUDA."""
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
    batch = torch.from_numpy(_batch(context.pixels, MAX_BATCH_SIZE)).cuda()

    def work() -> None:
        with torch.no_grad(), torch.autocast("cuda", torch.float16):
            graph(batch)
        torch.cuda.synchronize()

    with torch.no_grad():
        actual = graph(torch.from_numpy(context.pixels).cuda())[0].cpu().numpy()
    expected = onnx_scorer(context.network / ONNX_NAME)(context.pixels)
    result = compare("onnx-fp16", [p.name for p in context.photos], expected, actual)
    return {
        "version": torch.__version__,
        "parity": asdict(result),
        "network_images_per_second": rate(work, MAX_BATCH_SIZE),
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
    actual = runner.run(context.pixels)[0]
    expected = onnx_scorer(context.network / ONNX_NAME)(context.pixels)
    result = compare("tensorrt", [p.name for p in context.photos], expected, actual)
    rates = {}
    for size in (1, 8, MAX_BATCH_SIZE):
        runner.upload(_batch(context.pixels, size))
        rates[str(size)] = rate(runner.execute, size)
    runner.close()
    return {
        "manifest": asdict(manifest),
        "build_seconds": round(seconds, 1),
        "engine_bytes": plan.stat().st_size,
        "parity": asdict(result),
        "network_images_per_second_by_batch": rates,
        "failed": result.status == "fail",
    }


def check_gpu_preprocessing(context: Context) -> dict[str, Any]:
    """NvImageCodec and CV-CUDA against the reference pixels, and how fast they decode."""
    for name in ("nvidia.nvimgcodec", "cvcuda"):
        if _missing(name):
            raise Skip(f"{name} is not installed")
    if not find_gpus():
        raise Skip("there is no GPU")
    module = _model_file("gpu_pixels.py")
    spec = _full_decode(context.metadata.spec)
    pixels = module.on_gpu(spec, DEFAULT_LIMITS, 0)
    results = pixels(context.jpegs)
    import nvidia.nvimgcodec as nvimgcodec

    pixels.stack(results)  # waits for the GPU
    tensors = [np.asarray(nvimgcodec.as_image(tensor.cuda()).cpu()) for tensor in results]
    report = _pixel_difference(np.stack(tensors), context.jpegs, spec)

    def work() -> None:
        pixels.stack(pixels(context.jpegs))

    return {**report, "decode_images_per_second": rate(work, len(context.jpegs))}


def check_dali(context: Context) -> dict[str, Any]:
    """The pipeline of the profile ``dali`` against the reference pixels."""
    if _missing("nvidia.dali"):
        raise Skip("nvidia-dali is not installed")
    if not find_gpus():
        raise Skip("there is no GPU (its CPU half is covered by the tests)")
    module = _model_file("dali.py")
    spec = _full_decode(context.metadata.spec)
    pipeline = module.pipeline(batch_size=len(context.jpegs), prefetch_queue_depth=1)
    pipeline.build()

    def run() -> npt.NDArray[Any]:
        pipeline.feed_input("IMAGE", [np.frombuffer(d, np.uint8) for d in context.jpegs])
        (batch,) = pipeline.run()
        return np.asarray(batch.as_cpu().as_array())

    report = _pixel_difference(run(), context.jpegs, spec)
    return {**report, "decode_images_per_second": rate(lambda: _discard(run()), len(context.jpegs))}


STEPS: dict[str, Step] = {
    "cpu": check_cpu,
    "pytorch": check_pytorch,
    "tensorrt": check_tensorrt,
    "gpu_preprocessing": check_gpu_preprocessing,
    "dali": check_dali,
}


def run_checks() -> dict[str, Any]:
    """Run every step.

    Raises:
        ArtefactError: there is no exported network, or there are no photos.
    """
    network = default_repository() / NETWORK_MODEL / "1"
    metadata = ModelMetadata.load(network / METADATA_NAME)
    photos = golden_photos()
    jpegs = [_as_jpeg(path) for path in photos]
    report: dict[str, Any] = {
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "gpus": [asdict(gpu) for gpu in find_gpus()],
        },
        "checkpoint_sha256": metadata.checkpoint_sha256,
        "photos": len(photos),
        "seconds_per_rate": SECONDS,
        "steps": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        pixels = read_pixels(photos, metadata.spec)
        context = Context(network, metadata, photos, jpegs, pixels, Path(folder))
        for name, step in STEPS.items():
            start = time.perf_counter()
            try:
                found = step(context)
                status = "fail" if found.pop("failed", False) else "ok"
            except Skip as reason:
                found, status = {"reason": str(reason)}, "skip"
            except Exception as error:  # whatever a driver does, the other steps still run
                found, status = {"reason": f"{type(error).__name__}: {error}"}, "fail"
            seconds = round(time.perf_counter() - start, 1)
            report["steps"][name] = {"status": status, "seconds": seconds, **found}
            print(f"{name}: {status} ({seconds} s) {found.get('reason', '')}", flush=True)
    return report


def _batch(pixels: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    return np.resize(pixels, (size, *pixels.shape[1:]))


def _discard(_value: object) -> None:
    return None


def _missing(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is None
    except ModuleNotFoundError:
        return True


def _as_jpeg(path: Path) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.open(path).convert("RGB").save(file, "JPEG", quality=92)
    return file.getvalue()


def _full_decode(spec: PreprocessSpec) -> PreprocessSpec:
    """GPU decoders always decode at full size, so that is what they are compared with."""
    return PreprocessSpec.from_dict({**spec.to_dict(), "jpeg_oversampling": 0})


def _model_file(name: str) -> ModuleType:
    path = default_repository() / PREPROCESS_MODEL / "1" / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _pixel_difference(
    actual: npt.NDArray[Any], files: list[bytes], spec: PreprocessSpec
) -> dict[str, Any]:
    expected = np.stack([preprocess(data, spec) for data in files]).astype(int)
    difference = np.abs(expected - actual)
    return {
        "max_difference": int(difference.max()),
        "mean_difference": round(float(difference.mean()), 4),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 1 when a step failed or the check could not start."""
    parser = argparse.ArgumentParser(prog="python -m nima_build.gpu_check", description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("gpu-check.json"), help="report to write")
    options = parser.parse_args(arguments)
    try:
        report = run_checks()
    except ArtefactError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 1
    write_atomic(options.json, (json.dumps(report, indent=2) + "\n").encode())
    print(f"wrote {options.json}")
    if not report["machine"]["gpus"]:
        print("no NVIDIA GPU here: the GPU path has not been run")
    return int(any(step["status"] == "fail" for step in report["steps"].values()))


if __name__ == "__main__":
    sys.exit(main())
