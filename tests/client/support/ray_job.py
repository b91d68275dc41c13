"""Scoring on a local Ray with the real embedded Triton, inside a namespace that has only ``lo``.

Run by test_ray.py. Prints JSON: what was checked.
"""

import io
import json
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from PIL import Image

import nima_client.ray
from nima_build.server import EmbeddedServer
from nima_client import NimaClient

work = Path(sys.argv[1])


def photo(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (number * 5 % 256, 90, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


class Fragile(nima_client.ray.Scorer):
    """Dies in its first batch, once."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        marker = work / "died"
        if not marker.exists():
            marker.touch()
            os._exit(1)
        return super().__call__(batch)


def means(table: pa.Table) -> dict[str, float]:
    return dict(zip(table["path"].to_pylist(), table["mean"].to_pylist(), strict=True))


report = {}
with EmbeddedServer() as server:
    url = server.grpc_url
    images = {f"{i:03d}.jpg": photo(i) for i in range(48)}
    with NimaClient(url) as client:
        scores = client.score(list(images.values()))
    expected = {name: round(s.mean, 6) for name, s in zip(images, scores, strict=True)}

    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20
    )
    ray.data.DataContext.get_current().enable_progress_bars = False

    folder = work / "photos"
    folder.mkdir()
    for name, data in images.items():
        (folder / name).write_bytes(data)
    (folder / "bad.jpg").write_bytes(b"no photo")
    files = ray.data.read_binary_files(str(folder), include_paths=True)
    scored = nima_client.ray.score_dataset(files, url, batch_size=8)
    scored.write_parquet(str(work / "dataset"))
    table = pq.read_table(work / "dataset")
    found = {os.path.basename(k): v for k, v in means(table).items()}
    codes = dict(zip(map(os.path.basename, table["path"].to_pylist()), table["code"].to_pylist()))
    report["dataset"] = all(abs(found[n] - m) < 1e-5 for n, m in expected.items())
    report["bad"] = codes.pop("bad.jpg")
    report["codes"] = sorted({str(code) for code in codes.values()})
    report["columns"] = table.column_names

    pixels = np.stack([np.asarray(Image.open(io.BytesIO(d))) for d in list(images.values())[:4]])
    arrays = ray.data.from_items([{"image": p, "path": str(i)} for i, p in enumerate(pixels)])
    rows = nima_client.ray.score_dataset(arrays, url, image_column="image", actors=1).take_all()
    report["arrays"] = sorted(round(row["mean"], 4) for row in rows) == sorted(
        round(m, 4) for m in list(expected.values())[:4]
    )

    died = files.map_batches(
        Fragile, fn_constructor_kwargs={"url": url}, batch_size=8, batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=1), num_cpus=0.25,
    ).take_all()  # fmt: skip
    report["after a dead actor"] = len(died) == 49 and (work / "died").exists()

    shards = work / "shards"
    shards.mkdir()
    names = list(images)
    for shard in range(6):
        part = names[shard * 8 : shard * 8 + 8]
        data = pa.table({"path": part, "bytes": [images[n] for n in part]})
        pq.write_table(data, shards / f"shard-{shard}.parquet")
    out = work / "scores"
    # One partition is broken: the run fails, the others may be there.
    (shards / "shard-3.parquet").rename(work / "shard-3.parquet")
    (shards / "shard-3.parquet").write_bytes(b"not parquet")
    try:
        nima_client.ray.score_partitions(str(shards), str(out), url, actors=1)
        report["failed"] = False
    except Exception:
        report["failed"] = True
    first = {p.name: p.stat().st_mtime_ns for p in out.glob("*.parquet")}
    (work / "shard-3.parquet").rename(shards / "shard-3.parquet")
    os.chdir(work)  # where Ray's own processes are not
    relative = sorted(path.relative_to(work).as_posix() for path in shards.iterdir())
    done = nima_client.ray.score_partitions(relative, "scores", url)
    again = {p.name: p.stat().st_mtime_ns for p in out.glob("*.parquet")}
    report["kept"] = all(again[name] == time for name, time in first.items())
    report["exactly the rest"] = len(done) == 6 - len(first)
    report["nothing left"] = nima_client.ray.score_partitions(str(shards), str(out), url) == []
    together = pa.concat_tables(pq.read_table(p) for p in sorted(out.glob("*.parquet")))
    report["partitions"] = means(together) == expected
    report["leftovers"] = [p.name for p in out.iterdir() if p.suffix != ".parquet"]

    os.environ["NIMA_URL"] = url
    example = Path(__file__).resolve().parents[3] / "examples" / "ray_folder.py"
    runpy.run_path(str(example))["main"](str(folder), str(work / "example"))
    report["example"] = pq.read_table(work / "example").num_rows
    ray.shutdown()
print("REPORT " + json.dumps(report))
