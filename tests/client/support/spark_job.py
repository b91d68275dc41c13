"""The Spark example on local[2] with the real embedded Triton, inside a namespace with only ``lo``.

Run by test_spark.py. Prints JSON: what was checked.
"""

import io
import json
import os
import runpy
import sys
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from nima_build.server import EmbeddedServer
from nima_client import NimaClient

work = Path(sys.argv[1])
folder = work / "photos"
(folder / "below").mkdir(parents=True)
images = {}
for number in range(40):
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (number * 6, 90, 30)).save(buffer, "JPEG")
    name = f"below/{number}.jpg" if number % 2 else f"{number}.jpg"
    (folder / name).write_bytes(buffer.getvalue())
    images[name] = buffer.getvalue()
(folder / "bad.jpg").write_bytes(b"no photo")

with EmbeddedServer() as server:
    with NimaClient(server.grpc_url) as client:
        scores = client.score(list(images.values()))
    os.environ["NIMA_URL"] = server.grpc_url
    # What spark-submit would be given.
    os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
    os.environ["PYSPARK_PYTHON"] = sys.executable
    os.environ["PYSPARK_SUBMIT_ARGS"] = (
        "--master local[2] --conf spark.ui.enabled=false --conf spark.driver.host=127.0.0.1 "
        "--conf spark.driver.bindAddress=127.0.0.1 pyspark-shell"
    )
    example = Path(__file__).resolve().parents[3] / "examples" / "spark_folder.py"
    runpy.run_path(str(example))["main"](str(folder), str(work / "scores"))

rows = pq.read_table(work / "scores").to_pylist()
found = {row["file"].partition("/photos/")[2]: row for row in rows}
bad = found.pop("bad.jpg")
report = {
    "rows": len(rows),
    "bad": [bad["code"], bad["mean"]],
    "codes": sorted({str(row["code"]) for row in found.values()}),
    "equal": all(
        abs(found[name]["mean"] - score.mean) < 1e-5
        and len(found[name]["distribution"]) == 10
        and found[name]["checkpoint_sha256"] == score.checkpoint_sha256
        for name, score in zip(images, scores, strict=True)
    ),
}
print("REPORT " + json.dumps(report))
