"""CPU time of one photo's preprocessing, against a full Pillow decode and against its floor.

    python benchmarks/decode.py FOLDER [--repeats 5]

For every JPEG of two megapixels and more: the product's preprocessing; Pillow decoding all pixels,
then resizing, as most code does; Pillow with ``draft``; and what no DCT scaling can go below,
libjpeg-turbo at 1/8 scale, which still has to read every Huffman code. Least of so many repeats
each, in turn, in CPU time, which other programs disturb little. The last column is the change of
the bundled model's mean rating between the full Pillow decode and the product's pixels.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from nima_build.bench.arguments import count, told_by
from nima_build.bench.photos import LARGE_MEGAPIXELS, Photo, load_jpegs
from nima_build.onnx_session import cpu_session
from nima_build.repository import check_graph, default_repository, load_metadata
from nima_client.preprocess import PreprocessSpec, preprocess


def pillow(data: bytes, spec: PreprocessSpec, draft: bool, upright: bool = False) -> np.ndarray:
    """uint8 [S, S, 3] with Pillow alone; most code forgets to turn the photo ``upright``."""
    image = Image.open(io.BytesIO(data))
    if upright:
        image = ImageOps.exif_transpose(image)
    if draft:
        side = round(spec.resize_size * spec.jpeg_oversampling)
        image.draft("RGB", (side, side))
    side = spec.crop_size
    return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR))


def eighth(photo: Photo) -> np.ndarray:
    """The photo at an eighth of its size a side."""
    least = {"min_height": -(-photo.height // 8), "min_width": -(-photo.width // 8)}
    return simplejpeg.decode_jpeg(photo.data, colorspace="RGBX", **least)


def least_ms(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Least CPU milliseconds of each way; the ways take turns."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(repeats):
        for name, way in ways.items():
            begin = time.process_time()
            way()
            best[name] = min(best[name], (time.process_time() - begin) * 1000)
    return best


def main() -> None:
    """Print one Markdown row a photo, then the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=count, default=5)
    options = parser.parse_args()
    with told_by(parser):
        found = load_jpegs(options.folder)
    photos = [photo for photo in found if photo.megapixels >= LARGE_MEGAPIXELS]
    if not photos:
        parser.error(f"no JPEG of {LARGE_MEGAPIXELS:g} megapixels or more in {options.folder}")
    repository = default_repository()
    spec = load_metadata(repository).spec
    session = cpu_session(check_graph(repository, "fp32"))

    def rating(pixels: np.ndarray) -> float:
        return float(session.run(["MEAN"], {"PIXELS": pixels[None]})[0][0, 0])

    print("| photo | megapixels | bits a pixel | ours ms | full Pillow | draft | at 1/8 "
          "| full / ours | full / (1/8) | rating |\n" + "|---" * 10 + "|")  # fmt: skip
    ratios, bounds, changes = [], [], []
    for photo in photos:
        ms = least_ms(
            {
                "ours": lambda p=photo: preprocess(p.data, spec),
                "full": lambda p=photo: pillow(p.data, spec, draft=False),
                "draft": lambda p=photo: pillow(p.data, spec, draft=True),
                "floor": lambda p=photo: eighth(p),
            },
            options.repeats,
        )
        change = rating(preprocess(photo.data, spec)) - rating(
            pillow(photo.data, spec, False, upright=True)
        )
        ratios.append(ms["full"] / ms["ours"])
        bounds.append(ms["full"] / ms["floor"])
        changes.append(abs(change))
        print(
            f"| {photo.name[:34]} | {photo.megapixels:.1f} "
            f"| {len(photo.data) * 8e-6 / photo.megapixels:.1f} | {ms['ours']:.1f} "
            f"| {ms['full']:.1f} | {ms['draft']:.1f} | {ms['floor']:.1f} | {ratios[-1]:.2f} "
            f"| {bounds[-1]:.2f} | {change:+.4f} |"
        )
    print(
        f"\nfull / ours: median {statistics.median(ratios):.2f}, mean "
        f"{statistics.fmean(ratios):.2f} ({min(ratios):.1f} to {max(ratios):.1f}); "
        f"its bound, full / (1/8): median {statistics.median(bounds):.2f}. "
        f"|Change of the rating|: mean {statistics.fmean(changes):.4f}, most {max(changes):.4f}."
    )


if __name__ == "__main__":
    main()
