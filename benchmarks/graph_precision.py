"""What FP16 and int8 graphs do to the scores of the bundled model, and to its time on a CPU.

    python benchmarks/graph_precision.py FOLDER [--calibration FOLDER]

Mean ratings against the FP32 graph on the photos of a folder, all in ONNX Runtime, and the best
time of one image on one thread, the graphs taking turns. FP16 on a CPU is computed in FP32 between
casts, so its time says nothing about a GPU and is left out. int8 is the shipped graph, or one newly
fitted to the photos of ``--calibration``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import onnx

from nima_build import half
from nima_build.bench.arguments import told_by
from nima_build.int8 import calibration_pixels, to_int8
from nima_build.onnx_session import cpu_session
from nima_build.parity import means, onnx_scorer
from nima_build.repository import check_graph, default_repository, load_metadata

ROUNDS = 60


def ranks(values: np.ndarray) -> np.ndarray:
    """Rank of each value."""
    return np.argsort(np.argsort(values))


def best_times(graphs: dict[str, bytes], pixels: np.ndarray) -> dict[str, float]:
    """Best of :data:`ROUNDS` times of one image, in ms, the graphs taking turns."""
    sessions = {name: cpu_session(graph) for name, graph in graphs.items()}
    best = dict.fromkeys(graphs, float("inf"))
    for _ in range(ROUNDS):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(["MEAN"], {"PIXELS": pixels[:1]})
            best[name] = min(best[name], 1000 * (time.perf_counter() - start))
    return best


def main() -> None:
    """Print one Markdown row a graph."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--calibration", type=Path)
    options = parser.parse_args()
    repository = default_repository()
    with told_by(parser):
        spec = load_metadata(repository).spec
        pixels = calibration_pixels(options.folder, spec)
        fit_to = calibration_pixels(options.calibration, spec) if options.calibration else None
        shipped = check_graph(repository, "int8") if fit_to is None else None
    model = onnx.load(repository / "nima_network" / "1" / "model.onnx")
    graphs = {"FP32": model}
    stem = half.STEM_CONVOLUTIONS
    half.STEM_CONVOLUTIONS = len(model.graph.node)  # more than there are: no FP32 stem
    graphs["FP16, no FP32 stem"] = half.to_fp16(model)
    half.STEM_CONVOLUTIONS = stem
    graphs["FP16 as built"] = half.to_fp16(model)
    if fit_to is not None:
        graphs["int8"] = to_int8(model, fit_to)
    else:
        graphs["int8"] = onnx.load(shipped)
    content = {name: graph.SerializeToString() for name, graph in graphs.items()}
    scores = {name: means(onnx_scorer(graph)(pixels)) for name, graph in content.items()}
    times = best_times({n: g for n, g in content.items() if "FP16" not in n}, pixels)
    expected = scores["FP32"]
    print(f"{len(pixels)} photos of {options.folder.name}; mean ratings spread by ", end="")
    print(f"{expected.std():.2f}\n\n| graph | mean | max | Spearman | ms an image |")
    print("|---|---|---|---|---|")
    for name, values in scores.items():
        gap = np.abs(values - expected)
        order = np.corrcoef(ranks(values), ranks(expected))[0, 1]
        shown = f"{times[name]:.1f}" if name in times else ""
        print(f"| {name} | {gap.mean():.4f} | {gap.max():.4f} | {order:.3f} | {shown} |")


if __name__ == "__main__":
    main()
