"""Score a folder of photos with Spark into Parquet: one client for each partition.

pip install nima-triton pyspark pandas pyarrow        (Spark 4 needs Java 17)
NIMA_URL=nima.internal:8001 spark-submit examples/spark_folder.py s3a://bucket/photos s3a://bucket/scores
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pandas as pd
from pyspark.sql import SparkSession

from nima_client import NimaClient
from nima_client.library.run import PATIENT, score_photos
from nima_client.library.sources import Photo

SCHEMA = (
    "file string, mean double, std double, percentile double, distribution array<double>, "
    "checkpoint_sha256 string, code string, message string"
)
COLUMNS = [column.split()[0] for column in SCHEMA.split(", ")]
URL = os.environ.get("NIMA_URL", "127.0.0.1:8001")


def score_partition(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """For ``mapInPandas``: photos with ``path`` and ``content`` in, one row of scores each out."""
    with NimaClient(URL, retry=PATIENT, connect_timeout=PATIENT.budget_s) as client:
        for frame in frames:
            pairs = zip(frame["path"], frame["content"], strict=True)
            photos = (Photo(path, data=bytes(content)) for path, content in pairs)
            # A server that is gone raises: Spark runs the task again.
            rows = [outcome.to_dict() for outcome in score_photos(client, photos)]
            cells = [[row.get(column) for column in COLUMNS] for row in rows]
            yield pd.DataFrame(cells, columns=COLUMNS)


def main(photos: str, scores: str) -> None:
    """Read, score, write."""
    spark = (
        SparkSession.builder.appName("nima")
        # Photos are large: Spark's 10,000 rows a batch would be gigabytes.
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", "64")
        .getOrCreate()
    )
    images = spark.read.format("binaryFile").option("recursiveFileLookup", True).load(photos)
    images.select("path", "content").mapInPandas(score_partition, SCHEMA).write.parquet(scores)
    spark.stop()


if __name__ == "__main__":
    if len(sys.argv) != 3:  # photos/* would be many, and the second of them the output
        sys.exit(__doc__)
    main(*sys.argv[1:])
