"""What ``max_side`` and compression would do to uploads: bytes, time, change of the score.

    python benchmarks/upload.py FOLDER [--url HOST:PORT]

Without ``--url`` the embedded server is started. The scores compared are those of one server. The
last line is about HEIC, which travels as a JPEG: what that does to photos of which every pixel is
known, beside what their own JPEG file does.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import statistics
import time
from pathlib import Path

import numpy as np

from nima_build.bench.arguments import told_by
from nima_build.bench.photos import load_photos
from nima_client import Limits, NimaClient
from nima_client._defaults import HEIC_SIDE
from nima_client._images import PrepareOptions, prepare
from nima_client._signals import stoppable
from nima_client.preprocess import decode

SIDES = (448, 640, 1024, 2048)


def change(before: np.ndarray, after: np.ndarray) -> str:
    """How mean ratings differ."""
    moved = np.abs(after - before)
    return f"{moved.mean():.3f} on average, {moved.max():.3f} at most"


def replaced_heic(client: NimaClient, photos: list[bytes]) -> None:
    """Print what the JPEG in the place of a HEIC does to photos that are larger than it."""
    rows = []
    for photo in photos:
        image = decode(photo)
        if max(image.size) > HEIC_SIDE:
            whole = prepare(image, PrepareOptions(Limits())).data  # a PNG
            smaller = prepare(whole, PrepareOptions(Limits(), HEIC_SIDE)).data
            rows.append([score.mean for score in client.score([whole, photo, smaller])])
    if rows:
        pixels, own, smaller = np.array(rows).T
        print(
            f"  against every pixel of {len(rows)} photos: their own JPEG {change(pixels, own)}; "
            f"a JPEG of {HEIC_SIDE} pixels made of them {change(pixels, smaller)}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--url")
    given = parser.parse_args()
    with told_by(parser):
        photos = [photo.data for photo in load_photos([given.folder])]
    whole = sum(map(len, photos))
    print(f"{len(photos)} photos, {whole / 2**20:.1f} MiB")
    with contextlib.ExitStack() as stack:
        url = given.url
        if url is None:
            from nima_build.server import EmbeddedServer

            url = stack.enter_context(EmbeddedServer()).grpc_url
        client = stack.enter_context(NimaClient(url, request_size=1))
        before = np.array([score.mean for score in client.score(photos)])
        for side in SIDES:
            options = PrepareOptions(Limits(), side)
            start = time.process_time()
            small = [prepare(photo, options).data for photo in photos]
            seconds = time.process_time() - start
            after = np.array([score.mean for score in client.score(small)])
            changed = sum(a != b for a, b in zip(small, photos, strict=True))
            print(
                f"  max_side {side:>4}: {sum(map(len, small)) / whole:6.1%} of the bytes, "
                f"{seconds / len(photos) * 1e3:5.1f} ms of CPU a photo, {changed} photos smaller; "
                f"mean changes by {change(before, after)}"
            )
        replaced_heic(client, photos)
    start = time.process_time()
    packed = [len(gzip.compress(photo, 6)) for photo in photos]
    seconds = time.process_time() - start
    ratios = [p / len(photo) for p, photo in zip(packed, photos, strict=True)]
    print(
        f"  gzip: {sum(packed) / whole:.1%} of the bytes (median photo "
        f"{statistics.median(ratios):.1%}), {seconds / len(photos) * 1e3:.1f} ms of CPU a photo"
    )


if __name__ == "__main__":
    with stoppable("upload.py"):
        main()
