"""How far the pixels of the GPU profiles are from the reference, as far as a CPU can tell.

    python benchmarks/gpu_pixels.py FOLDER

nvImageCodec (its CPU decoders, then Pillow's resize in CV-CUDA's place) and DALI (on the CPU), on
the JPEG photos of a folder: difference in 1/255 from decoding at full size and from the reference
as it is served, and what that does to the mean rating of the bundled model (ONNX FP32 behind each).
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image

from nima_build.bench.arguments import told_by
from nima_build.bench.photos import load_jpegs
from nima_build.gpu_check.pixels import full_decode, model_file
from nima_build.parity import means, onnx_scorer
from nima_build.repository import default_repository, load_metadata
from nima_client.preprocess import PreprocessSpec, preprocess, to_pixels

BORDER = 2


def nvimagecodec(files: list[bytes], spec: PreprocessSpec) -> np.ndarray:
    """Pixels of the profile ``default``, but for the resize."""
    decoder = model_file("gpu_pixels.py").JpegDecoder(None)
    images = [decoder.decode([data])[0] for data in files]
    return np.stack([to_pixels(Image.fromarray(np.asarray(i.cpu())), spec) for i in images])


def dali(files: list[bytes], _spec: PreprocessSpec) -> np.ndarray:
    """Pixels of the profile ``dali``."""
    pipeline = model_file("dali.py").pipeline(
        device="cpu", device_id=None, batch_size=1, prefetch_queue_depth=1
    )
    pipeline.build()
    rows = []
    for data in files:
        pipeline.feed_input("IMAGE", [np.frombuffer(data, np.uint8)])
        (batch,) = pipeline.run()
        rows.append(np.asarray(batch[0]).copy())
    return np.stack(rows)


def main() -> None:
    """Print one Markdown row a decoder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    repository = default_repository()
    with told_by(parser):
        spec = load_metadata(repository).spec
        found = [photo.data for photo in load_jpegs(options.folder)]
    # What is not RGB takes the reference path in the profile default.
    files = [data for data in found if Image.open(io.BytesIO(data)).mode == "RGB"]
    if not files:
        parser.error(f"no RGB JPEG files in {options.folder}: name a folder that has some")
    score = onnx_scorer(repository / "nima_network" / "1" / "model.onnx")
    full = np.stack([preprocess(data, full_decode(spec)) for data in files]).astype(int)
    served = np.stack([preprocess(data, spec) for data in files])
    expected = means(score(served))
    spread = expected.std()
    print(f"{len(files)} photos of {options.folder.name}; mean ratings spread by {spread:.2f}\n")
    print("| decoder | full size: inside | border | mean | as served: max | mean |", end="")
    print(" mean rating: mean | max |\n|---|---|---|---|---|---|---|---|")
    decoders = {"nvImageCodec": nvimagecodec, "DALI": dali}
    for name, decode in decoders.items():
        pixels = decode(files, spec)
        gap, served_gap = np.abs(full - pixels), np.abs(served.astype(int) - pixels)
        inside = gap[:, BORDER:-BORDER, BORDER:-BORDER]
        change = np.abs(means(score(pixels)) - expected)
        print(
            f"| {name} | {inside.max()} | {gap.max()} | {gap.mean():.2f} | {served_gap.max()} | "
            f"{served_gap.mean():.2f} | {change.mean():.4f} | {change.max():.4f} |"
        )


if __name__ == "__main__":
    main()
