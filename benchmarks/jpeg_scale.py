"""What decoding JPEG at a reduced DCT scale does to pixels, scores and time.

    python benchmarks/jpeg_scale.py FOLDER [--oversampling 1 1.5 2 3]

Compares each ``PreprocessSpec.jpeg_oversampling`` with the full decode on the JPEG photos of a
folder: pixel difference in 1/255, difference of the bundled model's mean rating, and the ratio of
the preprocessing times (the best of a few each, in turn, photo by photo).
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from pathlib import Path

import numpy as np
import onnxruntime

from nima_build.bench.arguments import count, positive, told_by
from nima_build.bench.photos import load_jpegs
from nima_build.repository import default_repository, load_metadata
from nima_client.preprocess import PreprocessSpec, preprocess

FULL = 0.0
"""The oversampling that decodes every pixel."""


def oversampling(text: str) -> float:
    """A reduced scale, at least 1; an argparse type."""
    value = positive(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is below 1: the network would lack pixels")
    return value


def timed(
    data: bytes, specs: dict[float, PreprocessSpec], repeats: int
) -> tuple[dict[float, np.ndarray], dict[float, float]]:
    """Pixels by each specification, and the best of ``repeats`` times in seconds, in turn."""
    pixels, best = {}, dict.fromkeys(specs, float("inf"))
    for _ in range(repeats):
        for value, spec in specs.items():
            start = time.perf_counter()
            pixels[value] = preprocess(data, spec)
            best[value] = min(best[value], time.perf_counter() - start)
    return pixels, best


def main() -> None:
    """Print one Markdown row an oversampling."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--oversampling", type=oversampling, nargs="+", default=[1.0, 1.5, 2.0, 3.0]
    )
    parser.add_argument("--repeats", type=count, default=3)
    options = parser.parse_args()
    repository = default_repository()
    with told_by(parser):
        photos = load_jpegs(options.folder)
        spec = load_metadata(repository).spec
    session = onnxruntime.InferenceSession(
        str(repository / "nima_network" / "1" / "model.onnx"), providers=["CPUExecutionProvider"]
    )

    def mean_rating(pixels: np.ndarray) -> float:
        return float(session.run(["MEAN"], {"PIXELS": pixels[None]})[0][0, 0])

    specs = {
        value: dataclasses.replace(spec, jpeg_oversampling=value)
        for value in (FULL, *options.oversampling)
    }
    rows: dict[float, list[tuple[float, float, float, float]]] = {
        value: [] for value in options.oversampling
    }
    for photo in photos:
        pixels, seconds = timed(photo.data, specs, options.repeats)
        for value, found in rows.items():
            gap = np.abs(pixels[FULL].astype(np.int16) - pixels[value])
            change = abs(mean_rating(pixels[FULL]) - mean_rating(pixels[value]))
            found.append((gap.mean(), gap.max(), change, seconds[FULL] / seconds[value]))
    print(f"{len(photos)} photos of {options.folder.name}, against the full decode\n")
    print(
        "| oversampling | pixels: mean | max | mean rating: mean | max | times as fast (median) |"
    )
    print("|---|---|---|---|---|---|")
    for value, found in rows.items():
        pixel, largest, change, speed = zip(*found)
        print(
            f"| {value:g} | {statistics.fmean(pixel):.2f} | {max(largest)} | "
            f"{statistics.fmean(change):.4f} | {max(change):.4f} | {statistics.median(speed):.2f} |"
        )


if __name__ == "__main__":
    main()
