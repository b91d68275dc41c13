"""Errors of files and of the system as people write them, for all three packages.

Python's own text begins with a number, which says nothing to most: ``[Errno 2] No such file or
directory: 'x'``.
"""

from __future__ import annotations

import os
from typing import Any

from nima_client._names import display_name


def in_words(error: BaseException) -> str:
    """``x: No such file or directory``, or ``old -> new: …``, of an error of the system.

    Of any other error its own text.
    """
    text = reason(error)
    if not isinstance(error, OSError) or text != error.strerror:
        return text
    # A number is that of a file that is open already.
    given = (error.filename, error.filename2)
    names = [_shown(name) for name in given if isinstance(name, (str, bytes, os.PathLike))]
    return f"{' -> '.join(names)}: {text}" if names else text


def reason(error: BaseException) -> str:
    """As :func:`in_words`, but without the files: for a line that names them itself."""
    # Some have a text of their own: those made of a text alone, and kinds that other packages add.
    if isinstance(error, OSError) and type(error).__str__ is OSError.__str__ and error.strerror:
        return error.strerror
    return str(error)


def _shown(name: Any) -> str:
    text = display_name(name)
    # An empty one would not be seen; others would break the line, or command the terminal.
    return text if text and text.isprintable() else repr(text)
