"""Photos for a load test, and the input file perf_analyzer reads them from."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nima_build.bench import BenchError
from nima_client._files import write_atomic
from nima_client.contract import INPUT_IMAGE
from nima_client.library.text import counted
from nima_client.preprocess import (
    DEFAULT_LIMITS,
    ImageRejected,
    Limits,
    PreprocessSpec,
    decode,
    inspect_header,
)

LARGE_MEGAPIXELS = 2.0
"""Photos from here on form the set ``large``, the others the set ``small``."""
SETS = ("small", "large")
_REDUCED = PreprocessSpec()  # large JPEG at a reduced scale, as the server decodes them


@dataclass(frozen=True)
class Photo:
    """One encoded photo.

    Attributes:
        name: file name.
        data: the encoded file.
        width: stored width in pixels.
        height: stored height in pixels.
    """

    name: str
    data: bytes
    width: int
    height: int

    @property
    def megapixels(self) -> float:
        """Millions of pixels."""
        return self.width * self.height / 1e6


@dataclass(frozen=True)
class PhotoSet:
    """Photos of one class of size, measured together.

    Attributes:
        name: ``small`` or ``large``.
        photos: in order of their paths.
    """

    name: str
    photos: tuple[Photo, ...]

    def describe(self) -> str:
        """One line: how many, how large."""
        pixels = [photo.megapixels for photo in self.photos]
        least, most = (f"{p:.2g}" if p < 10 else f"{p:.0f}" for p in (min(pixels), max(pixels)))
        size = sum(len(photo.data) for photo in self.photos) / len(self.photos) / 1e3
        return (
            f"{counted(len(self.photos), 'photo')} of {least} to {most} megapixels, "
            f"{size:.0f} kB on average"
        )


def load_photos(paths: Iterable[Path], limits: Limits = DEFAULT_LIMITS) -> list[Photo]:
    """Read every photo of the given files and folders (searched to any depth).

    Args:
        paths: files and folders. What is not an image, or a damaged one, is passed over in folders.
        limits: as the server has them. A load test must not measure refusals, at the first of
            which perf_analyzer gives up.

    Raises:
        BenchError: a path does not exist, a named file is no photo, or there is none at all.
    """
    photos = []
    for root in paths:
        if not root.exists():
            raise BenchError(f"no such file or folder: {root}")
        files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
        for path in files:
            # Looked at before it is read: a folder of photos has videos, too.
            if (size := path.stat().st_size) > limits.max_bytes:
                if root.is_dir():
                    continue
                raise BenchError(f"{path} has {size} bytes, the limit is {limits.max_bytes}")
            data = path.read_bytes()
            try:
                header = inspect_header(data, limits)
                decode(data, _REDUCED, limits)
            except ImageRejected as error:
                if root.is_dir():
                    continue
                raise BenchError(f"{path} cannot be scored: {error}") from None
            photos.append(Photo(path.name, data, header.width, header.height))
    if not photos:
        raise BenchError("no photos found: pass a folder with JPEG, PNG or WebP files")
    return photos


def load_jpegs(folder: Path) -> list[Photo]:
    """The JPEG photos of a folder, as :func:`load_photos` finds them.

    Raises:
        BenchError: as :func:`load_photos`, or none of the photos is a JPEG.
    """
    found = [photo for photo in load_photos([folder]) if photo.data[:2] == b"\xff\xd8"]
    if not found:
        raise BenchError(f"no JPEG files in {folder}: name a folder that has some")
    return found


def split_by_size(photos: Sequence[Photo]) -> list[PhotoSet]:
    """One set of small and one of large photos; an empty one is left out."""
    small = tuple(p for p in photos if p.megapixels < LARGE_MEGAPIXELS)
    large = tuple(p for p in photos if p.megapixels >= LARGE_MEGAPIXELS)
    return [PhotoSet(name, part) for name, part in zip(SETS, (small, large)) if part]


def photo_set(paths: Iterable[Path], name: str) -> PhotoSet:
    """The set ``small`` or ``large`` of the given files and folders.

    Raises:
        BenchError: as :func:`load_photos`, or there are no such photos.
    """
    paths = list(paths)
    for found in split_by_size(load_photos(paths)):
        if found.name == name:
            return found
    side = "from" if name == "large" else "below"
    raise BenchError(
        f"no {name} photos ({side} {LARGE_MEGAPIXELS:g} megapixels) in "
        f"{', '.join(map(str, paths))}: name a folder that has some, or the other set"
    )


def perf_inputs(photos: Sequence[Photo]) -> dict[str, Any]:
    """The photos as perf_analyzer's ``--input-data`` document.

    A BYTES element is base64 of a four-byte little-endian length followed by the bytes
    (perf_analyzer, docs/input_data.md).
    """
    rows = []
    for photo in photos:
        framed = struct.pack("<I", len(photo.data)) + photo.data
        rows.append({INPUT_IMAGE: {"b64": base64.b64encode(framed).decode()}})
    return {"data": rows}


def write_perf_inputs(photos: Sequence[Photo], path: Path) -> None:
    """Write :func:`perf_inputs` as JSON, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(perf_inputs(photos)) + "\n").encode())
