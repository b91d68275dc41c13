"""Scoring on a Ray cluster: the same client, held by as many actors as the servers can feed.

    import ray, nima_client.ray

    photos = ray.data.read_images("s3://bucket/photos", mode="RGB", include_paths=True)  # or:
    photos = ray.data.read_binary_files("s3://bucket/photos", include_paths=True)
    scores = nima_client.ray.score_dataset(photos, "nima.internal:8001")
    scores.write_parquet("s3://bucket/scores")

For millions of photos, :func:`score_partitions` writes one Parquet file for each partition of the
input and passes over those that are there already: a run that was killed goes on where it stopped.

The code that scores is that of ``nima score`` (:func:`nima_client.library.run.score_photos`). Needs
the extra ``ray``. docs/client-scale-out.md has the same actor for Spark's ``mapInPandas``.
"""

from __future__ import annotations

import itertools
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from nima_client._client import NimaClient
from nima_client._partition_files import (
    absolute,
    base_name,
    filesystem,
    parquet_files,
    whole_parquet_file,
)
from nima_client.library.files import parquet_schema
from nima_client.library.rows import Row
from nima_client.library.run import PATIENT, score_photos
from nima_client.library.sources import Photo

if TYPE_CHECKING:
    import ray.data

__all__ = [
    "SCORE_COLUMNS",
    "PartitionScorer",
    "Scorer",
    "score_dataset",
    "score_partitions",
    "score_table",
]

_WHY = (pa.field("code", pa.string()), pa.field("message", pa.string()))
SCORE_COLUMNS: pa.Schema = pa.schema(
    [field.with_nullable(True) for field in parquet_schema() if field.name != "file"] + list(_WHY)
)
"""Columns that scoring adds: ``mean``, ``std``, ``percentile`` (float64), ``distribution`` (list of
10), ``model_version``, ``checkpoint``, ``checkpoint_sha256``; ``code`` and ``message`` say why a
photo has no score, and are null otherwise."""

# A client waits for its server more than it computes.
_ACTOR_CPUS = 0.25
_READ_ROWS = 256
# Of photos of 10 MB 256 rows are 2.5 GB; 25 of them still fill the usual requests under way.
_READ_BYTES = 256 << 20
# Arrow would otherwise hold a whole row group, and with pre_buffer the whole file, however few rows
# are asked for.
_FILE_OPTIONS = {"buffer_size": 8 << 20, "pre_buffer": False}


def score_table(client: NimaClient, names: Sequence[str], images: Iterable[Any]) -> pa.Table:
    """Score images; one row of :data:`SCORE_COLUMNS` for each, in order.

    Args:
        client: client of the server.
        names: what to call them in messages.
        images: encoded bytes, or uint8 arrays [H, W, 3].

    Raises:
        RequestError: the server is gone. In a dataset that ends the run: Ray repeats what died, not
            what failed.
    """
    photos = (_photo(name, image) for name, image in zip(names, images, strict=True))
    rows = []
    for outcome in score_photos(client, photos):
        fields = outcome.to_dict()
        if isinstance(outcome, Row):
            fields.update(code=None, message=None)
        rows.append({name: fields.get(name) for name in SCORE_COLUMNS.names})
    return pa.Table.from_pylist(rows, schema=SCORE_COLUMNS)


class Scorer:
    """Actor for ``Dataset.map_batches``: holds one client and scores batch after batch.

    Args:
        url: server; ``dns:///name:port`` spreads the actors' requests over several.
        image_column: column of encoded bytes (``read_binary_files``) or of uint8 arrays
            (``read_images``); it is dropped from the result.
        name_column: column of names for messages; may be absent.
        client_options: for :class:`nima_client.NimaClient`.
    """

    def __init__(
        self,
        url: str,
        image_column: str = "bytes",
        name_column: str = "path",
        client_options: dict[str, Any] | None = None,
    ) -> None:
        self._image_column = image_column
        self._name_column = name_column
        patient = {"retry": PATIENT, "connect_timeout": PATIENT.budget_s}
        self._client = NimaClient(url, **{**patient, **(client_options or {})})

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The batch without its images, with :data:`SCORE_COLUMNS`.

        Raises:
            ValueError: no column of images, or one is called as those that scoring adds; nothing
                has been scored.
        """
        if self._image_column not in batch.column_names:
            raise ValueError(
                f"no column {self._image_column!r}: there are {', '.join(batch.column_names)}; "
                "pass image_column"
            )
        kept = batch.drop_columns([self._image_column])
        if clash := [name for name in SCORE_COLUMNS.names if name in kept.column_names]:
            raise ValueError(
                f"the columns {', '.join(clash)} are there already: drop or rename them"
            )
        if self._name_column in batch.column_names:
            names = [str(name) for name in batch.column(self._name_column).to_pylist()]
        else:
            names = [f"row {number}" for number in range(batch.num_rows)]
        scores = score_table(self._client, names, _cells(batch.column(self._image_column)))
        for field in SCORE_COLUMNS:
            kept = kept.append_column(field, scores.column(field.name))
        return kept


def score_dataset(
    dataset: ray.data.Dataset,
    url: str,
    *,
    image_column: str = "bytes",
    name_column: str = "path",
    actors: int = 2,
    batch_size: int = 64,
    **client_options: Any,
) -> ray.data.Dataset:
    """Score a Ray Dataset.

    Lazy, as everything of Ray Data: nothing runs before the result is written or read. A photo
    without a score keeps its row, with ``code`` and ``message``. Ray restarts an actor that dies
    and gives its batch to another.

    Args:
        dataset: rows with an image each.
        url: server; see :class:`Scorer`.
        image_column: column of encoded bytes or of uint8 arrays.
        name_column: column of names.
        actors: clients at work at once; each keeps up to ``max_in_flight`` requests under way.
        batch_size: images in a batch: what is lost and done again when an actor dies.
        client_options: for :class:`nima_client.NimaClient`.

    Returns:
        The rows without their images, with :data:`SCORE_COLUMNS`.
    """
    from ray.data import ActorPoolStrategy

    return dataset.map_batches(
        Scorer,
        fn_constructor_kwargs={
            "url": url,
            "image_column": image_column,
            "name_column": name_column,
            "client_options": client_options,
        },
        batch_size=batch_size,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=actors),
        num_cpus=_ACTOR_CPUS,
        zero_copy_batch=True,
    )


class PartitionScorer:
    """Actor that scores one Parquet file after another into files of the same names.

    Args:
        output: folder of the results, local or ``s3://…``, ``gs://…``.
        options: for :class:`Scorer`.
    """

    def __init__(self, output: str, **options: Any) -> None:
        self._output = output
        self._scorer = Scorer(**options)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Score the files named in the column ``partition``; how many rows each has."""
        done = []
        for partition in batch.column("partition").to_pylist():
            rows, failed = self._score_file(partition)
            done.append({"partition": partition, "rows": rows, "failed": failed})
        return pa.Table.from_pylist(done)

    def _score_file(self, partition: str) -> tuple[int, int]:
        source, path = filesystem(partition)
        rows = failed = 0
        with source.open_input_file(path) as file:
            tables = self._tables(pq.ParquetFile(file, **_FILE_OPTIONS))
            first = next(tables)
            name = posixpath.basename(path)
            with whole_parquet_file(self._output, name, first.schema) as writer:
                for table in itertools.chain((first,), tables):
                    writer.write_table(table)
                    rows += table.num_rows
                    failed += table.num_rows - table.column("code").null_count
        return rows, failed

    def _tables(self, file: pq.ParquetFile) -> Iterator[pa.Table]:
        """The scores of one file, rows of a bounded number of bytes at a time: at least one table.

        By the row group whose rows are the largest on average.
        """
        if file.metadata.num_rows == 0:
            yield self._scorer(file.schema_arrow.empty_table())
            return
        groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
        largest = max(group.total_byte_size // max(1, group.num_rows) for group in groups)
        rows = min(_READ_ROWS, max(1, _READ_BYTES // max(1, largest)))
        for batch in file.iter_batches(batch_size=rows):
            yield self._scorer(pa.Table.from_batches([batch]))


def score_partitions(
    inputs: str | Sequence[str],
    output: str,
    url: str,
    *,
    image_column: str = "bytes",
    name_column: str = "path",
    actors: int = 2,
    **client_options: Any,
) -> list[dict[str, Any]]:
    """Score Parquet files of photos into Parquet files of scores, resumably.

    Each input file is a partition; its result has the same name and appears when it is complete
    (a partition without rows has a result without rows). Partitions whose result is there already
    are passed over, so that calling this again after a failure does exactly the rest.

    Args:
        inputs: a folder of Parquet files (names that begin with ``.`` or ``_`` are passed over, as
            readers of Parquet do), or the files; local paths or ``s3://…``, ``gs://…``, with
            user and options (``?endpoint_override=…``) where they are needed.
        output: folder of the results; it may lie in that of the partitions, but not be the same.
        url: server; see :class:`Scorer`.
        image_column: column of encoded bytes.
        name_column: column of names.
        actors: clients at work at once.
        client_options: for :class:`nima_client.NimaClient`.

    Returns:
        ``partition``, ``rows`` and ``failed`` of each file that this call scored.

    Raises:
        ValueError: no Parquet file in ``inputs``, two of the same name, or ``output`` is the folder
            that holds them.
    """
    import ray.data
    from ray.data import ActorPoolStrategy

    output = absolute(output)
    partitions = parquet_files(inputs, output)
    target, folder = filesystem(output)
    target.create_dir(folder, recursive=True)
    selector = pyarrow.fs.FileSelector(folder, allow_not_found=True)
    there = {info.base_name for info in target.get_file_info(selector)}
    left = [p for p in partitions if base_name(p) not in there]
    if not left:
        return []
    summary = ray.data.from_items(
        [{"partition": p} for p in left], override_num_blocks=len(left)
    ).map_batches(
        PartitionScorer,
        fn_constructor_kwargs={
            "output": output,
            "url": url,
            "image_column": image_column,
            "name_column": name_column,
            "client_options": client_options,
        },
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=min(actors, len(left))),
        num_cpus=_ACTOR_CPUS,
    )
    return [dict(row) for row in summary.take_all()]


def _photo(name: str, image: Any) -> Photo:
    return Photo(name, data=image) if isinstance(image, bytes) else Photo(name, array=image)


def _cells(column: pa.ChunkedArray) -> Iterator[Any]:
    """Images out of a column: bytes, or arrays of a tensor type, Ray's or Arrow's; b"" for null."""
    for chunk in column.chunks:
        if isinstance(chunk, pa.ExtensionArray):
            # Arrow's makes pixels of a null, Ray's fails at it.
            pixels = iter(_tensors(chunk.drop_null() if chunk.null_count else chunk))
            yield from (next(pixels) if there else b"" for there in chunk.is_valid().to_pylist())
        else:  # one by one: a list of all would be the batch once more
            yield from (b"" if (image := cell.as_py()) is None else image for cell in chunk)


def _tensors(chunk: pa.ExtensionArray) -> Any:
    if hasattr(chunk, "to_numpy_ndarray"):  # Arrow's, of which to_numpy makes flat rows
        return chunk.to_numpy_ndarray()
    return chunk.to_numpy(zero_copy_only=False)
