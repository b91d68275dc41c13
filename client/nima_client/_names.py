"""File names as text that every format can hold, and the way back to the file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

_LONGEST = 4096  # Linux's PATH_MAX; no other system takes more


def display_name(path: str | os.PathLike[str]) -> str:
    r"""A path as text that every format can hold: bytes that are not UTF-8 are escaped (``\xe9``).

    :func:`named_path` goes back.
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def named_path(name: str) -> Path:
    """The file that :func:`display_name` called so; what exists under the literal name comes first.

    Where there is none, the literal path.
    """
    path = Path(name)
    if os.path.lexists(path):
        return path
    try:
        stored = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return path
    # Bytes below 0x80 are UTF-8: none of them was escaped.
    stored = re.sub(rb"\\x([89a-f][0-9a-f])", lambda b: bytes.fromhex(b[1].decode()), stored)
    unescaped = Path(os.fsdecode(stored))
    return unescaped if os.path.lexists(unescaped) else path


def archives_above(path: Path) -> Iterator[Path]:
    """The files that a path leads through as if they were folders: the archive a photo is in."""
    # A member's name may have any length, and a million parts; what can be looked for has not.
    for parent in Path(str(path)[:_LONGEST]).parents:
        # os.path's, which takes what may not be looked at, or cannot be a name, for missing.
        if parent.suffix and os.path.isfile(archive := named_path(str(parent))):
            yield archive


def writable(text: str) -> str:
    """Text without lone surrogates, in which Python keeps those bytes; escaped as in a name."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
