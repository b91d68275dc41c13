"""JSON and Parquet that are replaced only when the new file is whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from nima_client._files import atomic_file, write_atomic

if TYPE_CHECKING:
    import pandas as pd


def json_bytes(value: object) -> bytes:
    """``value`` as indented JSON. NaN is refused (ValueError): it is not JSON."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: object) -> None:
    """Write ``value`` by way of :func:`json_bytes`."""
    write_atomic(path, json_bytes(value))


def write_parquet(path: Path, table: pd.DataFrame) -> None:
    """Write the columns of ``table``, without its index."""
    with atomic_file(path, "wb") as file:
        table.to_parquet(file, index=False)
