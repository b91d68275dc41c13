"""What a partition's result leaves behind: files whole or not there, local and in a bucket."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("pyarrow", reason="nima_client.ray needs the extra ray")

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

import nima_client.ray
from nima_client import _partition_files
from nima_client._partition_files import base_name, parquet_files
from nima_client.testing import FakeTransport

Photo = Callable[..., bytes]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A file system in memory behind ``mock://``, where closing a stream is what shows a file."""
    memory = pyarrow.fs._MockFileSystem()
    memory.create_dir("scores")
    ordinary = _partition_files.filesystem

    def found(path: str) -> tuple[Any, str]:
        scheme, _, inside = path.partition("://")
        return (memory, inside) if scheme == "mock" else ordinary(path)

    monkeypatch.setattr(_partition_files, "filesystem", found)
    return memory


@pytest.fixture
def shard(tmp_path: Path, photo: Photo) -> Path:
    path = tmp_path / "shard.parquet"
    images = [photo(number) for number in range(300)]
    pq.write_table(pa.table({"path": list(map(str, range(300))), "bytes": images}), path)
    return path


def scorer(output: object) -> nima_client.ray.PartitionScorer:
    return nima_client.ray.PartitionScorer(
        str(output), url="h:1", client_options={"transport": FakeTransport()}
    )


class Lost(BaseException):
    """As an actor's end comes."""


def break_after(scorer: Any, batches: int, error: BaseException) -> None:
    """Let the scorer fail once so many batches of a partition are written."""
    whole = scorer._scorer

    def breaking(batch: Any) -> Any:
        nonlocal batches
        if batches == 0:
            raise error
        batches -= 1
        return whole(batch)

    scorer._scorer = breaking


def names(filesystem: Any, folder: str) -> list[str]:
    found = filesystem.get_file_info(pyarrow.fs.FileSelector(folder))
    return [info.base_name for info in found]


@pytest.mark.parametrize("error", [RuntimeError("gone"), Lost()])
def test_a_partition_that_failed_leaves_nothing(
    bucket: Any, shard: Path, tmp_path: Path, error: BaseException
) -> None:
    local = tmp_path / "scores"
    local.mkdir()
    for output, left in (
        ("mock://scores", lambda: names(bucket, "scores")),
        (local, lambda: [path.name for path in local.iterdir()]),
    ):
        failing = scorer(output)
        break_after(failing, 1, error)
        with pytest.raises(type(error)) as raised:
            failing._score_file(str(shard))
        assert raised.value is error
        assert left() == []
        assert scorer(output)._score_file(str(shard)) == (300, 0)
        assert left() == ["shard.parquet"]


def test_a_result_that_is_there_outlives_a_partition_that_cannot_be_read(
    bucket: Any, shard: Path
) -> None:
    scorer("mock://scores")._score_file(str(shard))
    shard.write_bytes(b"not parquet")
    with pytest.raises(pa.ArrowInvalid):
        scorer("mock://scores")._score_file(str(shard))
    assert names(bucket, "scores") == ["shard.parquet"]


def test_what_could_not_be_deleted_is_named(
    shard: Path, monkeypatch: pytest.MonkeyPatch, bucket: Any
) -> None:
    class Keeping:
        def __getattr__(self, name: str) -> Any:
            return getattr(bucket, name)

        def delete_file(self, path: str) -> None:
            raise PermissionError("not yours")

    ordinary = _partition_files.filesystem
    monkeypatch.setattr(
        _partition_files,
        "filesystem",
        lambda path: (Keeping(), "scores") if path.startswith("mock") else ordinary(path),
    )
    failing = scorer("mock://scores")
    break_after(failing, 1, RuntimeError("gone"))
    with pytest.raises(OSError, match=r"scores/shard\.parquet is incomplete.*delete it") as raised:
        failing._score_file(str(shard))
    assert str(raised.value.__cause__) == "gone"


def test_while_a_partition_is_written_readers_of_the_folder_do_not_see_it(
    shard: Path, tmp_path: Path
) -> None:
    output = tmp_path / "scores"
    output.mkdir()
    scorer(output)._score_file(str(shard))
    second = shard.rename(shard.with_name("second.parquet"))
    writing = scorer(output)
    seen = []

    def look(batch: Any, whole: Any = writing._scorer) -> Any:
        seen.append((len(list(output.iterdir())), pq.read_table(output).num_rows))
        return whole(batch)

    writing._scorer = look  # type: ignore[assignment]
    writing._score_file(str(second))
    assert seen == [(1, 300), (2, 300)]
    assert pq.read_table(output).num_rows == 600


def test_a_result_is_on_the_disk_before_it_has_its_name_however_long(
    shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = shard.rename(shard.with_name("p" * 247 + ".parquet"))
    output = tmp_path / "scores"
    output.mkdir()
    synced = []

    def fsync(descriptor: int, whole: Any = os.fsync) -> None:
        known = os.fstat(descriptor)
        if stat.S_ISREG(known.st_mode):  # not its folder
            synced.append((known.st_size, (output / long.name).exists()))
        whole(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert scorer(output)._score_file(str(long)) == (300, 0)
    assert synced == [((output / long.name).stat().st_size, False)]


def test_what_is_read_at_a_time_is_bounded_by_bytes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without that 256 photos of a camera are gigabytes, and a row group even more."""
    monkeypatch.setattr(nima_client.ray, "_READ_BYTES", 1 << 20)
    monkeypatch.setitem(nima_client.ray._FILE_OPTIONS, "buffer_size", 1 << 16)
    path, images = tmp_path / "large.parquet", [os.urandom(100_000) for _ in range(200)]
    table = pa.table({"path": list(map(str, range(200))), "bytes": images})
    pq.write_table(table, path, write_batch_size=4)
    images.clear()
    del table
    assert pq.ParquetFile(path).metadata.num_row_groups == 1
    reading, whole, held = scorer(tmp_path / "scores"), nima_client.ray.Scorer.__call__, []
    before = pa.total_allocated_bytes()

    def look(own: Any, batch: pa.Table) -> pa.Table:
        held.append((batch.num_rows, pa.total_allocated_bytes() - before))
        return whole(own, batch)

    monkeypatch.setattr(nima_client.ray.Scorer, "__call__", look)
    assert reading._score_file(str(path)) == (200, 200)  # noise is no photo
    assert [rows for rows, _ in held] == [10] * 20
    assert max(size for _, size in held) < 5 << 20
    scores = pq.read_table(tmp_path / "scores" / path.name)
    assert scores.column("path").to_pylist() == list(map(str, range(200)))


def test_a_partition_without_rows_has_a_result_without_rows(
    bucket: Any, shard: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.parquet"
    pq.write_table(pq.read_table(shard).slice(0, 0), empty)
    assert scorer("mock://scores")._score_file(str(empty)) == (0, 0)
    scorer("mock://scores")._score_file(str(shard))
    with bucket.open_input_file("scores/empty.parquet") as file:
        table = pq.read_table(file)
    with bucket.open_input_file("scores/shard.parquet") as file:
        assert table.schema == pq.read_table(file).schema
    assert table.num_rows == 0


def test_a_column_called_as_a_score_is_told_before_anything_is_scored(photo: Photo) -> None:
    fake = FakeTransport()
    scorer = nima_client.ray.Scorer("h:1", client_options={"transport": fake})
    batch = pa.table({"bytes": [photo(0)], "mean": [5.0], "path": ["a"], "code": [None]})
    with pytest.raises(ValueError, match=r"mean, code .*drop or rename"):
        scorer(batch)
    assert fake.requests == []
    columns = scorer(batch.drop_columns(["mean", "code"])).column_names
    assert len(columns) == len(set(columns))


def test_a_new_actor_is_as_patient_as_one_that_has_met_its_server(photo: Photo) -> None:
    class Asked(FakeTransport):
        def describe(self, model_name: str, model_version: str, timeout_s: float) -> Any:
            asked.append(timeout_s)
            return super().describe(model_name, model_version, timeout_s)

    asked: list[float] = []
    batch = pa.table({"bytes": [photo(0)]})
    nima_client.ray.Scorer("h:1", client_options={"transport": Asked()})(batch)
    assert 50 < asked[0] <= 60
    options = {"transport": Asked(), "connect_timeout": 2.0}
    nima_client.ray.Scorer("h:1", client_options=options)(batch)
    assert asked[1] <= 2


@pytest.mark.parametrize("uri", [False, True])
def test_results_inside_the_folder_of_the_partitions_are_no_partitions(
    tmp_path: Path, uri: bool
) -> None:
    photos = tmp_path / "my photos 100%"
    for name in ("a.parquet", "more/b.parquet", "scores/a.parquet", "scores 2/c.parquet"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).touch()
    folder = photos.as_uri() if uri else str(photos)
    found = parquet_files(folder, str(photos / "scores"))
    assert [base_name(file) for file in found] == ["a.parquet", "b.parquet", "c.parquet"]
    for file in found:
        filesystem, inside = _partition_files.filesystem(file)
        assert filesystem.get_file_info(inside).is_file
    # Both below another one.
    assert len(parquet_files(str(photos / "scores 2"), str(photos))) == 1
    with pytest.raises(ValueError, match="holds the partitions"):
        parquet_files(folder, str(photos) + "/")


@pytest.mark.parametrize("one", [False, True])
@pytest.mark.parametrize("uri", [False, True])
def test_results_in_the_place_of_partitions_that_are_named_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: bool, uri: bool
) -> None:
    (tmp_path / "a b.parquet").touch()
    monkeypatch.chdir(tmp_path)
    name = (tmp_path / "a b.parquet").as_uri() if uri else "a b.parquet"
    with pytest.raises(ValueError, match="holds the partitions"):
        parquet_files(name if one else [name], ".")
    # Processes that score have another working folder.
    (found,) = parquet_files(name if one else [name], "scores")
    assert found == (name if uri else str(tmp_path / name))


def test_what_readers_of_parquet_pass_over_is_no_partition(tmp_path: Path) -> None:
    folder = tmp_path / "_mine" / ".photos"
    hidden = ("._a.parquet", "_delta_log/1.checkpoint.parquet", "_temporary/0/b.parquet")
    for name in (*hidden, "a.parquet", "day=1/b_c.parquet"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for inputs in (str(folder), f"{folder}/", folder.as_uri()):
        assert list(map(base_name, parquet_files(inputs, "out"))) == ["a.parquet", "b_c.parquet"]
    assert parquet_files(str(folder / hidden[0]), "out") == [str(folder / hidden[0])]


def test_where_a_bucket_is_stays_in_the_names_of_its_files(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.create_dir("bucket/in/scores")
    for name in ("a b", "scores/a b"):
        bucket.open_output_stream(f"bucket/in/{name}.parquet").close()
    monkeypatch.setattr(
        _partition_files,
        "filesystem",
        lambda path: (
            bucket,
            unquote(urlsplit(path).netloc.rpartition("@")[2] + urlsplit(path).path),
        ),
    )
    options = "?endpoint_override=minio:9000&scheme=http"
    found = parquet_files(f"s3://me:secret@bucket/in{options}", f"s3://bucket/in/scores{options}")
    assert found == [f"s3://me:secret@bucket/in/a%20b.parquet{options}"]
    assert base_name(found[0]) == "a b.parquet"
