"""What arguments of a command lead to on a disk: files, folders, patterns."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from nima_client.library.formats import is_hidden, is_passed_over, scored_suffixes, suffix_of

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


class SourceError(ValueError):
    """A path that names nothing to score; the message says what to do."""


def expand(argument: str) -> tuple[list[Path], bool]:
    """What an argument names, and whether by its own name (not by a pattern)."""
    if not argument:
        raise SourceError("an empty argument names nothing (an unset variable?); . is this folder")
    path = Path(argument)
    # A file may really be called "photo[1].jpg".
    if path.exists() or path.is_symlink():
        return [path], True
    if glob.has_magic(argument):
        matches = sorted(glob.glob(os.path.expanduser(argument), recursive=True))
        if not matches:
            raise SourceError(f"nothing matches {argument!r}")
        return [m for m in map(Path, matches) if m.is_dir() or _is_wanted(m)], False
    raise SourceError(f"{argument}: no such file or folder")


def walk(
    folder: Path, recursive: bool, on_error: Callable[[OSError], None], left_out: str | None
) -> Iterator[Path]:
    for here, folders, names in os.walk(folder, onerror=on_error):
        folders[:] = (
            f
            for f in folders
            if recursive
            and not f.startswith(".")
            and (left_out is None or os.path.realpath(os.path.join(here, f)) != left_out)
        )
        folders.sort(key=_natural)
        for name in sorted(names, key=_natural):
            if _is_wanted(path := Path(here, name)):
                yield path


def _natural(name: str) -> tuple[tuple[tuple[int, str], ...], str]:
    """Sort key that counts the digits in a name as numbers."""
    parts = re.split(r"([0-9]+)", name)
    return tuple((int(p), "") if p.isdecimal() else (-1, p.casefold()) for p in parts), name


def _is_wanted(path: Path) -> bool:
    """Whether a file that was found, not named, is a photo of any format or a tar archive."""
    suffix = suffix_of(path.name)
    is_known = suffix in scored_suffixes() or is_passed_over(suffix)
    is_known = is_known or path.name.lower().endswith(TAR_SUFFIXES)
    return is_known and not is_hidden(path.name) and _is_file(path)


def _is_file(path: Path) -> bool:
    """Whether it can be read to an end: a pipe or a device can not."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:  # told when its turn comes
        return True
