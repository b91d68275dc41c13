"""What ``max_side`` and compression would do to uploads: bytes, time, change of the score.

    python benchmarks/upload.py FOLDER [--url HOST:PORT]

Without ``--url`` the embedded server is started. The scores compared are those of one server.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import statistics
import time
from pathlib import Path

import numpy as np

from nima_client import Limits, NimaClient
from nima_client._images import PrepareOptions, prepare
from nima_client.library.sources import find_photos

SIDES = (448, 640, 1024, 2048)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--url")
    given = parser.parse_args()
    photos = [path.read_bytes() for path in find_photos([given.folder]).files]
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
            change = np.abs(after - before)
            changed = sum(a != b for a, b in zip(small, photos, strict=True))
            print(
                f"  max_side {side:>4}: {sum(map(len, small)) / whole:6.1%} of the bytes, "
                f"{seconds / len(photos) * 1e3:5.1f} ms of CPU a photo, {changed} photos smaller; "
                f"mean changes by {change.mean():.3f} on average, {change.max():.3f} at most"
            )
    start = time.process_time()
    packed = [len(gzip.compress(photo, 6)) for photo in photos]
    seconds = time.process_time() - start
    ratios = [p / len(photo) for p, photo in zip(packed, photos, strict=True)]
    print(
        f"  gzip: {sum(packed) / whole:.1%} of the bytes (median photo "
        f"{statistics.median(ratios):.1%}), {seconds / len(photos) * 1e3:.1f} ms of CPU a photo"
    )


if __name__ == "__main__":
    main()
