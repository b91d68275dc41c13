"""Scoring on a local Ray with the real embedded Triton.

Ray binds to the machine's own address; a network namespace with nothing but ``lo`` keeps it in.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="nima_client.ray needs the extra ray")

JOB = Path(__file__).parent / "support" / "ray_job.py"


@pytest.mark.timeout(300)
def test_a_local_ray_scores_datasets_and_partitions(
    loopback_only: list[str], tmp_path: Path
) -> None:
    # Nothing outside can reach the namespace: no token, which Ray would leave in the home folder.
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    environment["RAY_TMPDIR"] = "/tmp"  # for its sockets, whose paths may not be long
    done = subprocess.run(
        [*loopback_only, sys.executable, str(JOB), str(tmp_path)],
        capture_output=True, text=True, timeout=280, check=False, env=environment,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("REPORT ")]
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(lines[0].removeprefix("REPORT "))
    assert report == {
        "dataset": True,
        "bad": "UNSUPPORTED",
        "codes": ["None"],
        "columns": [
            "path", "mean", "std", "percentile", "distribution",
            "model_version", "checkpoint", "checkpoint_sha256", "code", "message",
        ],
        "arrays": True,
        "after a dead actor": True,
        "failed": True,
        "kept": True,
        "exactly the rest": True,
        "nothing left": True,
        "partitions": True,
        "leftovers": [],
        "example": 49,
    }  # fmt: skip


def test_wrong_inputs_are_told(tmp_path: Path) -> None:
    import pyarrow as pa

    import nima_client.ray

    with pytest.raises(ValueError, match="no Parquet files"):
        nima_client.ray.score_partitions(str(tmp_path), str(tmp_path / "out"), "h:1")
    with pytest.raises(ValueError, match="same file name"):
        nima_client.ray.score_partitions(["a/x.parquet", "b/x.parquet"], "out", "h:1")
    with pytest.raises(ValueError, match="image_column"):
        nima_client.ray.Scorer("h:1")(pa.table({"jpeg": [b"x"]}))


def test_pixels_may_come_in_tensors_of_arrow() -> None:
    """Ray holds its own by default, Arrow's where its DataContext says so."""
    import numpy as np
    import pyarrow as pa

    import nima_client.ray
    from nima_client import NimaClient
    from nima_client.testing import FakeTransport

    pixels = np.arange(3 * 8 * 9 * 3, dtype=np.uint8).reshape(3, 8, 9, 3)
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(pixels)
    columns = [pa.chunked_array([tensors]), pa.chunked_array([tensors[:1], tensors[1:]])]
    with NimaClient(transport=FakeTransport()) as client:
        for column in columns:
            cells = list(nima_client.ray._cells(column))
            assert all(map(np.array_equal, cells, pixels))
            table = nima_client.ray.score_table(client, ["0", "1", "2"], cells)
            assert table.column("code").to_pylist() == [None] * 3


@pytest.mark.parametrize("kind", ["Arrow's", "Ray's", "Ray's, of several shapes"])
def test_a_row_whose_pixels_are_null_has_no_score(kind: str) -> None:
    """As a union of datasets leaves them, of which one lacks the column."""
    import numpy as np
    import pyarrow as pa
    from ray.data._internal.tensor_extensions.arrow import ArrowTensorArray

    import nima_client.ray
    from nima_client.testing import FakeTransport

    pixels = np.arange(2 * 8 * 9 * 3, dtype=np.uint8).reshape(2, 8, 9, 3)
    tensors = {
        "Arrow's": lambda: pa.FixedShapeTensorArray.from_numpy_ndarray(pixels),
        "Ray's": lambda: ArrowTensorArray.from_numpy(pixels),
        "Ray's, of several shapes": lambda: ArrowTensorArray.from_numpy([pixels[0], pixels[1, 1:]]),
    }[kind]()
    null = pa.nulls(1, tensors.type)
    column = pa.chunked_array([null, pa.concat_arrays([null, tensors, null])])
    scorer = nima_client.ray.Scorer("h:1", client_options={"transport": FakeTransport()})
    table = scorer(pa.table({"bytes": column}))
    assert table.column("code").to_pylist() == ["EMPTY", "EMPTY", None, None, "EMPTY"]
    means = [mean is None for mean in table.column("mean").to_pylist()]
    assert means == [True, True, False, False, True]
