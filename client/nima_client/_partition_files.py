"""The Parquet files of a partitioned run, on a disk or in a bucket."""

from __future__ import annotations

import contextlib
import os
import posixpath
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from nima_client._files import atomic_file


def filesystem(path: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system of a path or URI, and the path inside it."""
    if "://" in path:
        found, inside = pyarrow.fs.FileSystem.from_uri(path)
        return found, inside
    return pyarrow.fs.LocalFileSystem(), os.path.abspath(path)


def absolute(path: str) -> str:
    """The path or URI as processes with another working folder understand it: Ray's may have."""
    return path if "://" in path else os.path.abspath(path)


def base_name(path: str) -> str:
    """The file's own name, without what a URI says of the place."""
    if "://" in path:
        path = urllib.parse.unquote(urllib.parse.urlsplit(path).path)
    return posixpath.basename(path)


@contextlib.contextmanager
def whole_parquet_file(folder: str, name: str, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Write a file that is there only when it is complete.

    Args:
        folder: a path or URI.
        name: of the file in it.
        schema: its columns.

    Raises:
        OSError: it could not be written.
    """
    target, inside = filesystem(folder)
    if isinstance(target, pyarrow.fs.LocalFileSystem):
        # Until then it has a hidden name, which those who read the whole folder pass over.
        with (
            atomic_file(Path(inside, name), "wb") as file,
            pq.ParquetWriter(file, schema) as writer,
        ):
            yield writer
        return
    final = posixpath.join(inside, name)
    out = target.open_output_stream(final)
    try:
        with out, pq.ParquetWriter(out, schema) as writer:
            yield writer
    except BaseException as error:
        # Object stores show a file when it is closed, and closing made a valid file of what there
        # was: the next run would take it as done.
        _delete_incomplete(target, final, error)
        raise


def _delete_incomplete(found: pyarrow.fs.FileSystem, path: str, error: BaseException) -> None:
    """Delete what an ``error`` left incomplete.

    Raises:
        OSError: it cannot be deleted; says that it must be.
    """
    try:
        found.delete_file(path)
    except FileNotFoundError:
        pass
    except OSError as why:
        raise OSError(
            f"{path} is incomplete and could not be deleted ({why}): delete it before the next run"
        ) from error


def parquet_files(inputs: str | Sequence[str], output: str) -> list[str]:
    """The partitions: the Parquet files of a folder and those below it, or the files given.

    Names in a folder that begin with ``.`` or ``_`` are passed over, as readers of Parquet do: what
    is still being written, or the log of a table.

    Args:
        inputs: a folder, a file or files, as paths or URIs.
        output: folder of the results, whose files are none.

    Returns:
        Their absolute paths or URIs, those of a folder sorted; with user and options where that of
        the folder has them.

    Raises:
        ValueError: there are none, two have the same name, or a result would be in the place of
            its partition.
    """
    files = _below(inputs, output) if isinstance(inputs, str) else _given(inputs, output)
    if not files:
        raise ValueError(f"{inputs}: no Parquet files there")
    names = [base_name(file) for file in files]
    if len(set(names)) < len(names):
        raise ValueError("two partitions have the same file name: their results would collide")
    return files


def _below(inputs: str, output: str) -> list[str]:
    found, folder = filesystem(inputs)
    if found.get_file_info(folder).type == pyarrow.fs.FileType.File:
        return _given([inputs], output)
    results = _results_below(inputs, output)
    selector = pyarrow.fs.FileSelector(folder, allow_not_found=True, recursive=True)
    return sorted(
        _joined(inputs, folder, info.path)
        for info in found.get_file_info(selector)
        if info.path.endswith(".parquet")
        and not any(name[:1] in (".", "_") for name in _below_it(folder, info.path).split("/"))
        and not (results is not None and info.path.startswith(results))
    )


def _given(inputs: Sequence[str], output: str) -> list[str]:
    files = [absolute(file) for file in inputs]
    for folder in {_folder(file) for file in files}:
        _results_below(folder, output)
    return files


def _folder(file: str) -> str:
    """Path or URI of the folder that holds a file."""
    if "://" not in file:
        return posixpath.dirname(file)
    parts = urllib.parse.urlsplit(file)
    return parts._replace(path=posixpath.dirname(parts.path)).geturl()


def _results_below(inputs: str, output: str) -> str | None:
    """Where paths of results begin, if these lie below the folder of the partitions.

    Raises:
        ValueError: they lie in it.
    """
    found, folder = filesystem(inputs)
    target, below = filesystem(output)
    if not found.equals(target):
        return None
    folder, below = (path.rstrip("/") + "/" for path in (folder, below))
    if folder == below:
        raise ValueError(f"{output} holds the partitions: results of the same names need another")
    return below if below.startswith(folder) else None


def _below_it(folder: str, path: str) -> str:
    return path[len(folder.rstrip("/")) :].lstrip("/")


def _joined(inputs: str, folder: str, path: str) -> str:
    """Path or URI of a file below a folder that was given as ``inputs``."""
    if "://" not in inputs:
        return path
    relative = urllib.parse.quote(_below_it(folder, path))
    parts = urllib.parse.urlsplit(inputs)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{relative}").geturl()
