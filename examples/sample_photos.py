"""The photographs that ship with scikit-image, as files: for who has no folder at hand.

python examples/sample_photos.py FOLDER   writes them as JPEG, for ``make bench``
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageFilter

PHOTOS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
    "rocket.jpg",
)
BLUR_SHARE = 0.012
QUALITY = 92


def photos() -> Iterator[tuple[str, Image.Image]]:
    """Name without ending and pixels (RGB) of each."""
    import skimage

    for name in PHOTOS:
        with Image.open(Path(skimage.__file__).parent / "data" / name) as image:
            yield Path(name).stem, image.convert("RGB")


def write_pairs(folder: Path) -> None:
    """Each as PNG, and a blurred copy of it, which should score lower."""
    for stem, photo in photos():
        photo.save(folder / f"{stem}.png")
        radius = BLUR_SHARE * min(photo.size)
        photo.filter(ImageFilter.GaussianBlur(radius)).save(folder / f"{stem}_blurred.png")


def write_jpegs(folder: Path) -> None:
    """Each as JPEG, which is what cameras and phones send."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, photo in photos():
        photo.save(folder / f"{stem}.jpg", quality=QUALITY)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="made where it does not exist")
    write_jpegs(parser.parse_args().folder)
