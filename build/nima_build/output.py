"""Outputs that can be seen to be wrong before the minutes of work that go into them."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from nima_client._files import is_stream, make_parent


def check_output(path: Path) -> None:
    """Refuse a file that could not be written; makes the folder that it goes into.

    Raises:
        OSError: it is a folder, or no file can be made where it goes.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if is_stream(path):
        return
    make_parent(path)
    final = Path(os.path.realpath(path))
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryFile(dir=final.parent):
            pass
    except OSError as error:
        error.filename = str(path)  # not a name nobody has heard of
        raise
