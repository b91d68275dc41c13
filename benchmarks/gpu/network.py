"""The network alone on a GPU, by engine and batch.

    python benchmarks/gpu/network.py --out out/gpu

PyTorch eager in FP32 and FP16, its CUDA graph, torch.compile, the package of ``nima build
--target inductor`` (its scores copied to the CPU, as it serves), ONNX Runtime with CUDA, and
TensorRT where they are installed; random pixels, on the GPU already, and a synchronise after each
batch. ``error`` is the largest difference of a mean rating from FP32 on the CPU. Written after each
engine, so that a run cut short leaves what it found.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nima_build.gpu import find_gpus
from nima_build.graph import HalfScoringGraph, ScoringGraph
from nima_build.half import to_fp16
from nima_build.inductor import open_package
from nima_build.paths import BUNDLED_CHECKPOINT
from nima_build.repository import ONNX_NAME, default_repository
from nima_client._files import write_atomic
from nima_client._package import PACKAGE_NAME
from nima_client.contract import NETWORK_MODEL, OUTPUT_MEAN, PIXELS
from nima_training.checkpoint import load_checkpoint

BATCHES = (1, 8, 32, 128)
ROUNDS, SECONDS = 3, 0.3
NETWORK = default_repository() / NETWORK_MODEL / "1"
Run = Callable[[], None]
"""One batch, to its end on the GPU."""


class Engines:
    """Each engine as a function of the batch: what runs it, and what gives the mean ratings."""

    def __init__(self) -> None:
        loaded = load_checkpoint(BUNDLED_CHECKPOINT)
        rng = np.random.default_rng(0)
        side = loaded.spec.crop_size
        self.pixels = torch.from_numpy(
            rng.integers(0, 256, (max(BATCHES), side, side, 3), dtype=np.uint8)
        )
        with torch.no_grad():
            self.wanted = ScoringGraph(loaded.model, loaded.spec)(self.pixels[:8])[1]
        self.full = ScoringGraph(loaded.model, loaded.spec).cuda()
        self.half = HalfScoringGraph(loaded.model, loaded.spec).cuda()
        self.onnx = NETWORK / ONNX_NAME

    def eager(self, graph: Any, batch: int) -> tuple[Run, Callable[[], Any]]:
        pixels = self.pixels[:batch].cuda()

        def run() -> None:
            graph(pixels)
            torch.cuda.synchronize()

        return run, lambda: _means(graph(pixels)).cpu()

    def eager_fp32(self, batch: int) -> tuple[Run, Callable[[], Any]]:
        return self.eager(self.full, batch)

    def eager_fp16(self, batch: int) -> tuple[Run, Callable[[], Any]]:
        return self.eager(self.half, batch)

    def captured(self, graph: Any, batch: int) -> tuple[Run, Callable[[], Any]]:
        pixels = self.pixels[:batch].cuda()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                graph(pixels)
        torch.cuda.current_stream().wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            outputs = graph(pixels)

        def run() -> None:
            captured.replay()
            torch.cuda.synchronize()

        def means() -> Any:
            run()
            return _means(outputs).cpu()

        return run, means

    def graph_fp16(self, batch: int) -> tuple[Run, Callable[[], Any]]:
        return self.captured(self.half, batch)

    def compile_fp16(self, batch: int) -> tuple[Run, Callable[[], Any]]:
        torch._dynamo.reset()
        return self.captured(torch.compile(self.half, dynamic=False), batch)

    def inductor(self, batch: int) -> tuple[Run, Callable[[], Any]]:
        pixels = self.pixels[:batch].cuda()
        compiled = open_package(NETWORK / PACKAGE_NAME)
        if compiled.graph_error:
            print("no CUDA graphs:", compiled.graph_error, flush=True)

        def run() -> None:
            compiled([pixels])

        return run, lambda: torch.from_numpy(compiled([pixels])[:, 10:11])

    def onnxruntime_fp32(self, batch: int) -> tuple[Run, Callable[[], Any]]:
        return self.onnxruntime(self.onnx.read_bytes(), batch)

    def onnxruntime_fp16(self, batch: int) -> tuple[Run, Callable[[], Any]]:
        import onnx

        return self.onnxruntime(to_fp16(onnx.load(self.onnx)).SerializeToString(), batch)

    def onnxruntime(self, model: bytes, batch: int) -> tuple[Run, Callable[[], Any]]:
        import onnxruntime

        options = {"device_id": 0, "cudnn_conv_algo_search": "EXHAUSTIVE", "enable_cuda_graph": "1"}
        session = onnxruntime.InferenceSession(
            model, providers=[("CUDAExecutionProvider", options)]
        )
        if "CUDAExecutionProvider" not in session.get_providers():
            raise RuntimeError("this ONNX Runtime has no CUDA")
        pixels = self.pixels[:batch].cuda()
        shape, kind = tuple(pixels.shape), np.uint8
        mean = torch.empty((batch, 1), device="cuda")
        binding = session.io_binding()
        binding.bind_input(PIXELS, "cuda", 0, kind, shape, pixels.data_ptr())
        binding.bind_output(OUTPUT_MEAN, "cuda", 0, np.float32, (batch, 1), mean.data_ptr())
        torch.cuda.synchronize()

        def run() -> None:
            session.run_with_iobinding(binding)

        def means() -> Any:
            run()
            assert pixels.is_cuda  # held here: the binding has no more than its address
            return mean.cpu()

        return run, means

    def tensorrt(self, batch: int) -> tuple[Run, Callable[[], Any]]:
        from nima_build.engine_manifest import PLAN_NAME
        from nima_build.engine_runner import EngineRunner

        runner = EngineRunner(NETWORK / PLAN_NAME)
        pixels = self.pixels[:batch].numpy()
        runner.upload(pixels)
        return runner.execute, lambda: torch.from_numpy(runner.run(pixels)[1])


def _means(outputs: Any) -> torch.Tensor:
    """Mean ratings ``[B, 1]`` of either scoring graph: a tensor of three outputs, or three."""
    means: torch.Tensor = outputs[1] if isinstance(outputs, tuple) else outputs[:, 10:11]
    return means


def rate(run: Run, images: int) -> float:
    """Images per second, the median of rounds."""
    for _ in range(3):
        run()
    rates = []
    for _ in range(ROUNDS):
        runs, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < SECONDS:
            run()
            runs += 1
        rates.append(images * runs / elapsed)
    return round(statistics.median(rates), 1)


ENGINES = {
    "PyTorch eager FP32": Engines.eager_fp32,
    "PyTorch eager FP16": Engines.eager_fp16,
    "PyTorch CUDA graph FP16": Engines.graph_fp16,
    "ONNX Runtime FP32": Engines.onnxruntime_fp32,
    "ONNX Runtime FP16": Engines.onnxruntime_fp16,
    "inductor package FP16": Engines.inductor,
    "torch.compile and CUDA graph FP16": Engines.compile_fp16,
    "TensorRT FP16": Engines.tensorrt,
}


def to_markdown(report: dict[str, Any]) -> str:
    """One row an engine: images per second by batch."""
    lines = [
        f"{report['gpu']['name']}, driver {report['gpu']['driver']}, PyTorch {report['torch']}. "
        "Images per second of the network alone, median of rounds; error: largest difference of a "
        "mean rating from FP32 on the CPU.",
        "",
        "| engine | " + " | ".join(f"batch {batch}" for batch in BATCHES) + " | error |",
        "|---" * (len(BATCHES) + 2) + "|",
    ]
    for name, rows in report["engines"].items():
        cells = [f"{rows[str(b)]['rate']:,.0f}" if str(b) in rows else "" for b in BATCHES]
        errors = [rows[str(b)]["error"] for b in BATCHES if str(b) in rows]
        note = f"{max(errors):.4f}" if errors else ""
        note = "; ".join(filter(None, [note, rows.get("reason", "")]))
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {note} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure every engine, write network.json and network.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/gpu"))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    options = parser.parse_args()
    gpus = find_gpus()
    if not torch.cuda.is_available() or not gpus:
        parser.error("PyTorch or nvidia-smi finds no NVIDIA GPU here")
    torch.backends.cudnn.benchmark = True
    engines = Engines()
    report: dict[str, Any] = {
        "gpu": asdict(gpus[0]),
        "torch": torch.__version__,
        "engines": {},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.engines:
        rows: dict[str, Any] = {}
        report["engines"][name] = rows
        for batch in BATCHES:
            try:
                with torch.no_grad():
                    run, means = ENGINES[name](engines, batch)
                    found = means()[:8]
                    error = float((found - engines.wanted[: len(found)]).abs().max())
                    rows[str(batch)] = {"rate": rate(run, batch), "error": error}
            except Exception as error:  # an engine that is not here: the others still run
                said = "".join(str(error).splitlines()[:1])[:120]
                rows["reason"] = ": ".join(filter(None, [type(error).__name__, said]))
                print(name, batch, rows["reason"], flush=True)
                break
            print(name, batch, rows[str(batch)], flush=True)
        content = json.dumps(report, indent=2) + "\n"
        write_atomic(options.out / "network.json", content.encode())
        write_atomic(options.out / "network.md", to_markdown(report).encode())
    print(to_markdown(report))


if __name__ == "__main__":
    main()
