"""Results as columns: a NumPy record array, a pandas frame, an Arrow table.

Each takes the list that ``score(…, on_error="return")`` or ``score`` gave. An image without a score
keeps its row: NaN (null in Arrow) in the numbers, and the reason in ``code`` and ``message``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from nima_client._names import writable
from nima_client.contract import NUM_RATINGS
from nima_client.results import ImageFailure, ImageScore

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["RECORD_DTYPE", "to_arrow", "to_numpy", "to_pandas"]

RECORD_DTYPE = np.dtype(
    [
        ("index", np.int64),
        ("mean", np.float32),
        ("std", np.float32),
        ("distribution", np.float32, (NUM_RATINGS,)),
        ("percentile", np.float32),
        ("ok", np.bool_),
    ]
)
"""One image: ``index``; ``mean`` 1..10 and ``std``; ``distribution`` [10]; ``percentile`` 0..100
(NaN without a reference set); ``ok`` is false, and the numbers NaN, where there is no score."""

_TEXT_COLUMNS = (
    "source", "model_name", "model_version", "checkpoint_name", "checkpoint_sha256", "request_id",
)  # fmt: skip


_NUMBER_COLUMNS = ("mean", "std", "percentile")
_WHY_COLUMNS = ("code", "message")


def to_numpy(results: Iterable[ImageScore | ImageFailure]) -> np.ndarray[Any, np.dtype[np.void]]:
    """Results as a record array of :data:`RECORD_DTYPE`, shape ``[N]``.

    Example:
        >>> records = to_numpy(client.score(paths))
        >>> records["mean"].argmax()
    """
    return np.array([_record(result) for result in results], dtype=RECORD_DTYPE)


def to_arrow(results: Iterable[ImageScore | ImageFailure]) -> pa.Table:
    """Results as an Arrow table, one row for each image.

    Columns: ``index`` int64; ``mean``, ``std``, ``percentile`` float64; ``distribution`` list of
    10 float64; where the score comes from (``source``, ``model_name``, ``model_version``,
    ``checkpoint_name``, ``checkpoint_sha256``, ``request_id``), ``code`` and ``message`` as
    strings, with bytes of a file's name that are not UTF-8 escaped.

    Raises:
        ModuleNotFoundError: pyarrow is not installed.
    """
    import pyarrow as pa

    numbers = [pa.field(name, pa.float64()) for name in _NUMBER_COLUMNS]
    texts = [pa.field(name, pa.string()) for name in (*_TEXT_COLUMNS, *_WHY_COLUMNS)]
    schema = pa.schema(
        [
            pa.field("index", pa.int64(), nullable=False),
            *numbers,
            # Not a list of fixed size: Parquet cannot read one back that has nulls.
            pa.field("distribution", pa.list_(pa.float64())),
            *texts,
        ]
    )
    return pa.Table.from_pylist([_columns(result) for result in results], schema=schema)


def to_pandas(results: Iterable[ImageScore | ImageFailure]) -> pd.DataFrame:
    """Results as a pandas frame with the columns of :func:`to_arrow`, indexed by ``index``.

    Bytes of a file's name that are not UTF-8 are escaped here, too. The distribution is a column of
    tuples; ``np.stack(frame["distribution"].dropna())`` makes it an array [N, 10].

    Raises:
        ModuleNotFoundError: pandas is not installed.
    """
    import pandas as pd

    rows = [_columns(result) for result in results]
    # Said, not guessed: without a row or a score pandas would take texts for numbers.
    dtypes = {
        "index": "int64",
        **dict.fromkeys(_NUMBER_COLUMNS, "float64"),
        "distribution": "object",
        **dict.fromkeys((*_TEXT_COLUMNS, *_WHY_COLUMNS), "str"),
    }
    columns = {
        name: pd.Series([row.get(name) for row in rows], dtype=dtype)
        for name, dtype in dtypes.items()
    }
    return pd.DataFrame(columns).set_index("index")


def _record(result: ImageScore | ImageFailure) -> tuple[Any, ...]:
    if isinstance(result, ImageFailure):
        return (result.index, math.nan, math.nan, (math.nan,) * NUM_RATINGS, math.nan, False)
    percentile = math.nan if result.percentile is None else result.percentile
    return (result.index, result.mean, result.std, result.distribution, percentile, True)


def _columns(result: ImageScore | ImageFailure) -> dict[str, Any]:
    fields = result.to_dict()
    if fields["source"] is not None:
        fields["source"] = writable(fields["source"])
    if isinstance(result, ImageFailure):
        kept = ("index", "source", "request_id", *_WHY_COLUMNS)
        return {name: fields[name] for name in kept} | {"message": writable(fields["message"])}
    return {**fields, "distribution": result.distribution, **dict.fromkeys(_WHY_COLUMNS)}
