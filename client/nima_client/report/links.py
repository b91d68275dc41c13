"""Where a page's photos are, as addresses for a browser."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote


def link_to(photo: Path, folder: Path | None) -> str:
    """The address of a photo's file, as a page links to it.

    Args:
        photo: the file.
        folder: where the page will lie; None where nobody knows.

    Returns:
        Relative for a photo in that folder or below it, so that they may be moved, or served,
        together; else a ``file:`` URL. In both whatever is no letter or digit is escaped, byte by
        byte: names need not be UTF-8.
    """
    place = _absolute(photo)
    if folder is not None:
        home = _absolute(folder / photo.name).parent
        # The names people use first: a link to a disk outlives the place where it is mounted.
        for file, above in ((place, home), (_real(place), _real(home / photo.name).parent)):
            if file.is_relative_to(above):
                return quote(os.fsencode(file.relative_to(above).as_posix()))
    return place.as_uri()


def _absolute(path: Path) -> Path:
    """The path from the root on, with its links, as far as no ``..`` leads out of one."""
    return _real(path) if ".." in path.parts else path.absolute()


def _real(path: Path) -> Path:
    """The path without links among its folders; if the file is one, by the link's own name."""
    return Path(os.path.realpath(path.parent), path.name)
