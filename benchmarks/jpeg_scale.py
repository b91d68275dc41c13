"""What decoding JPEG at a reduced DCT scale does to pixels, scores and time.

    python benchmarks/jpeg_scale.py FOLDER [--oversampling 1 1.5 2 3]

Compares each ``PreprocessSpec.jpeg_oversampling`` with the full decode on the JPEG photos of a
folder: pixel difference in 1/255, difference of the bundled model's mean rating, and the ratio of
the preprocessing times (both sides of a ratio measured back to back, photo by photo).
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from pathlib import Path

import numpy as np
import onnxruntime

from nima_build.repository import default_repository, load_metadata
from nima_client.preprocess import PreprocessSpec, preprocess


def timed(data: bytes, spec: PreprocessSpec, repeats: int) -> tuple[np.ndarray, float]:
    """Pixels, and the best of ``repeats`` times in seconds."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        pixels = preprocess(data, spec)
        best = min(best, time.perf_counter() - start)
    return pixels, best


def main() -> None:
    """Print one Markdown row an oversampling."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--oversampling", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    repository = default_repository()
    spec = load_metadata(repository).spec
    session = onnxruntime.InferenceSession(
        str(repository / "nima_network" / "1" / "model.onnx"), providers=["CPUExecutionProvider"]
    )

    def mean_rating(pixels: np.ndarray) -> float:
        return float(session.run(["MEAN"], {"PIXELS": pixels[None]})[0][0, 0])

    photos = [p for p in sorted(options.folder.iterdir()) if p.suffix.lower() in (".jpg", ".jpeg")]
    if not photos:
        parser.error(f"no JPEG files in {options.folder}")
    rows: dict[float, list[tuple[float, float, float, float]]] = {
        value: [] for value in options.oversampling
    }
    for photo in photos:
        data = photo.read_bytes()
        full, full_seconds = timed(
            data, dataclasses.replace(spec, jpeg_oversampling=0), options.repeats
        )
        for value in options.oversampling:
            reduced, seconds = timed(
                data, dataclasses.replace(spec, jpeg_oversampling=value), options.repeats
            )
            gap = np.abs(full.astype(np.int16) - reduced)
            change = abs(mean_rating(full) - mean_rating(reduced))
            rows[value].append((gap.mean(), gap.max(), change, full_seconds / seconds))
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
