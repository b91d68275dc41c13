"""Keeps libtiff from writing to standard error.

It writes a line for each row it cannot decode: a file of 1.5 MB made it write 39 MB. In a server
that is the log, with which an uploader could fill the disk. Pillow offers no switch for it.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

_MAPS = Path("/proc/self/maps")


def silence_libtiff() -> bool:
    """Take away the handlers through which the libtiff of this process's Pillow speaks.

    What is wrong with a file is still an exception of Pillow's. For processes that are one's own:
    other users of the same library fall silent too.

    Returns:
        Whether the library was found (Linux; a Pillow that was built with it).
    """
    from PIL import _imaging  # noqa: F401 - maps the library

    try:
        mapped = {line.split()[-1] for line in _MAPS.read_text().splitlines() if "libtiff" in line}
    except OSError:
        return False
    # Others have the name, too: nvImageCodec's libtiff_ext keeps its libtiff to itself.
    libraries = [lib for lib in map(ctypes.CDLL, mapped) if hasattr(lib, "TIFFSetErrorHandler")]
    for library in libraries:
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            setter = getattr(library, name)
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
            setter(None)
    return bool(libraries)
