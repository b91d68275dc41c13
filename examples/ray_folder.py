"""Score a folder of photos with Ray, on this machine or on a cluster, into Parquet.

pip install 'nima-triton[ray]'
NIMA_URL=nima.internal:8001 python examples/ray_folder.py s3://bucket/photos s3://bucket/scores
"""

from __future__ import annotations

import os
import sys

import ray

import nima_client.ray


def main(photos: str, scores: str) -> None:
    """Read, score, write."""
    ray.init(ignore_reinit_error=True)
    images = ray.data.read_binary_files(photos, include_paths=True)
    nima_client.ray.score_dataset(
        images, os.environ.get("NIMA_URL", "127.0.0.1:8001"), actors=2
    ).write_parquet(scores)


if __name__ == "__main__":
    if len(sys.argv) != 3:  # photos/* would be many, and the second of them the output
        sys.exit(__doc__)
    main(*sys.argv[1:])
