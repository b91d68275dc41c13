"""What arguments of a command lead to on a disk: files, folders, patterns."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from nima_client.library.formats import is_hidden, is_passed_over, scored_suffixes, suffix_of
from nima_client.library.text import natural

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


class SourceError(ValueError):
    """A path that names nothing to score; the message says what to do."""


class NoPhotosError(SourceError):
    """A folder or a pattern that is in order, and in which no photo is."""


def expand(
    argument: str, on_error: Callable[[OSError], None], left_out: str | None = None
) -> tuple[list[Path], bool]:
    """What an argument names, and whether by its own name (not by a pattern).

    Args:
        argument: of a command.
        on_error: told of each folder that a pattern leads into and that may not be read.
        left_out: real path of a folder whose files a pattern passes over that begins outside it.

    Raises:
        SourceError: it names nothing; NoPhotosError where a pattern only matches nothing.
    """
    if not argument:
        raise SourceError("an empty argument names nothing (an unset variable?); . is this folder")
    pattern = glob.has_magic(argument)
    try:
        os.lstat(argument)
        there = True  # a file may really be called "photo[1].jpg"
    except (FileNotFoundError, NotADirectoryError, ValueError):
        there = False
    except OSError:  # told when its turn comes
        there = not pattern
    if there:
        return [Path(argument)], True
    if pattern:
        argument = os.path.expanduser(argument)
        matches = sorted(glob.glob(argument, recursive=True))
        errors = _unreadable(argument)
        if not matches and not errors:
            raise NoPhotosError(f"nothing matches {argument!r}")
        for error in errors:
            on_error(error)
        begin = argument
        while glob.has_magic(begin):
            begin = os.path.dirname(begin)
        if left_out is not None and not _is_in(os.path.join(begin, os.curdir), left_out):
            matches = [m for m in matches if not _is_in(m, left_out)]
        return [m for m in map(Path, matches) if os.path.isdir(m) or _is_wanted(m)], False
    raise SourceError(f"{argument}: no such file or folder")


def _is_in(path: str, folder: str) -> bool:
    """Whether a file, be it a link, or a folder lies in a folder of this real path."""
    place = path if os.path.isdir(path) else os.path.dirname(path)
    return Path(os.path.realpath(place)).is_relative_to(folder)


def _unreadable(pattern: str) -> list[OSError]:
    """Why folders that a pattern leads into cannot be looked into: glob passes over them."""
    looked_for: set[tuple[str, str]] = set()
    rest = pattern
    while glob.has_magic(rest):
        whole, (rest, last) = rest, os.path.split(rest)
        if last == "**":
            looked_for.add((whole, ""))
        else:
            looked_for.add((rest, "" if glob.has_magic(last) else last))
    errors: dict[str, OSError] = {}
    for given, name in looked_for:
        folders = [given or os.curdir]
        if glob.has_magic(given):
            folders = glob.glob(os.path.join(given, ""), recursive=True)
        for folder in folders:
            try:
                if not name:
                    os.scandir(folder).close()
                # "." can be seen of a folder that may be entered.
                os.lstat(os.path.join(folder, name or os.curdir))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                errors.setdefault(os.path.normpath(folder), error)
    return [errors[folder] for folder in sorted(errors)]


def walk(
    folder: Path, recursive: bool, on_error: Callable[[OSError], None], left_out: str | None
) -> Iterator[Path]:
    """The photos of any format and the archives of a folder, sorted by name.

    Args:
        folder: where to look.
        recursive: look into its folders, too, those excepted that are hidden, or links.
        on_error: told of each folder that may not be read.
        left_out: real path of a folder to pass over.
    """
    for here, folders, names in os.walk(folder, onerror=on_error):
        folders[:] = (
            f
            for f in folders
            if recursive
            and not f.startswith(".")
            and (left_out is None or os.path.realpath(os.path.join(here, f)) != left_out)
        )
        folders.sort(key=natural)
        for name in sorted(names, key=natural):
            if _is_wanted(path := Path(here, name)):
                yield path


def _is_wanted(path: Path) -> bool:
    """Whether a file that was found, not named, is a photo of any format or a tar archive."""
    return is_photo_or_archive(path.name) and not is_hidden(path.name) and _is_file(path)


def is_photo_or_archive(name: str) -> bool:
    """Whether a name ends as those of photos of any format, or of tar archives."""
    suffix = suffix_of(name)
    is_known = suffix in scored_suffixes() or is_passed_over(suffix)
    return is_known or name.lower().endswith(TAR_SUFFIXES)


def _is_file(path: Path) -> bool:
    """Whether it can be read to an end: a pipe or a device can not."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:  # told when its turn comes
        return True
