"""Which row of a CSV file, as an editor or a spreadsheet counts them, a record was read from."""

from __future__ import annotations

import bz2
import csv
import gzip
import lzma
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def csv_rows(path: Path, count: int) -> Sequence[int]:
    """Row numbers of the records below the header, which pandas counts without blank lines.

    Args:
        path: the file, which pandas has read.
        count: records that it found.

    Returns:
        A number for each record, from 1 for the first row of the file; a record whose text has
        several lines is one row. Where rows cannot be counted (a ``.zip``, a pipe), as if none was
        blank.
    """
    blind = range(2, count + 2)
    if not path.is_file():  # a pipe, whose text is gone
        return blind
    opened = _OPENERS.get(path.suffix, open)
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as text:
            found = [row for row, cells in enumerate(csv.reader(text), 1) if not _is_blank(cells)]
    except (OSError, EOFError, ValueError, lzma.LZMAError, csv.Error):
        return blind
    return found[1:] if len(found) == count + 1 else blind


def _is_blank(cells: list[str]) -> bool:
    return not cells or (len(cells) == 1 and not cells[0].strip())
