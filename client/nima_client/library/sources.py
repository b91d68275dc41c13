"""Where photos come from: files, folders, patterns and tar shards."""

from __future__ import annotations

import functools
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from nima_client._names import display_name
from nima_client.contract import DEFAULT_MAX_BYTES
from nima_client.library.folders import TAR_SUFFIXES, NoPhotosError, SourceError, expand, walk
from nima_client.library.formats import (
    is_hidden,
    is_passed_over,
    passed_over_text,
    scored_suffixes,
    suffix_of,
)
from nima_client.library.tar_stream import DAMAGE, open_tar, read_member

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


_FIRST = 2  # behind the second of equal names


@dataclass(frozen=True, slots=True)
class Photo:
    """One photo to score.

    Attributes:
        name: how results call it; unique in a run. Bytes of a path that are not UTF-8 are escaped.
        path: its file, which is read when its turn comes; or else
        data: its bytes; or else
        array: its pixels, uint8 [H, W, 3]; or else
        unreadable: why there is nothing to score: it fails with the code ``UNREADABLE``. So do a
            damaged archive and a folder that may not be read, which stand for their photos.
    """

    name: str
    path: Path | None = None
    data: bytes | None = None
    array: npt.NDArray[np.uint8] | None = None
    unreadable: str = ""

    @property
    def image(self) -> Path | bytes | npt.NDArray[np.uint8] | BinaryIO:
        """What the client's ``score`` takes."""
        if self.unreadable:
            return _Unreadable(self.unreadable)
        for given in (self.path, self.data, self.array):
            if given is not None:
                return given
        raise ValueError(f"{self.name}: neither a path nor data nor an array")


class _Unreadable(io.BytesIO):
    """A file whose reading fails, as that of a file of the disk may."""

    def __init__(self, why: str) -> None:
        super().__init__()
        self._why = why

    def read(self, size: int | None = -1, /) -> bytes:
        """Fail.

        Raises:
            OSError: always.
        """
        raise OSError(self._why)


@dataclass(frozen=True)
class Sources:
    """What one run has to score.

    Attributes:
        files: photo files, in order, without duplicates.
        archives: tar shards, in order; their members come after the files.
        unreadable: folders, given or met by a pattern, that may not be read, and why; each is one
            photo that fails.
        passed_over: photos of formats that cannot be scored, by their ending. Those in archives are
            counted as these are read.
    """

    files: tuple[Path, ...]
    archives: tuple[Path, ...] = ()
    unreadable: tuple[tuple[Path, str], ...] = ()
    passed_over: Counter[str] = field(default_factory=Counter)

    @property
    def known_total(self) -> int | None:
        """Number of photos, or None while it is not known (archives are read only once)."""
        return None if self.archives else len(self.files) + len(self.unreadable)

    @functools.cached_property
    def named(self) -> dict[str, Path]:
        """The files by the names that results give them, in order."""
        # An escaped name gives way to a file that is really called so.
        taken = dict.fromkeys(map(str, self.files), _FIRST)
        names = {}
        for path in self.files:
            name = display_name(path)
            names[name if name == str(path) else _unique(name, taken)] = path
        return names

    def __iter__(self) -> Iterator[Photo]:
        for name, path in self.named.items():
            yield Photo(name, path=path)
        for folder, why in self.unreadable:
            yield Photo(display_name(folder), unreadable=why)
        for archive in self.archives:
            try:
                yield from read_tar(archive, self.passed_over)
            except SourceError as error:
                name = display_name(archive)
                yield Photo(name, unreadable=str(error).removeprefix(f"{name}: "))


def find_photos(
    paths: Iterable[str | os.PathLike[str]],
    *,
    recursive: bool = True,
    left_out: str | os.PathLike[str] | None = None,
) -> Sources:
    """Everything that the arguments of a command name.

    Args:
        paths: files (scored whatever their ending), folders (photos by ending; hidden files and
            folders are passed over, links to folders are not followed), tar archives, or patterns
            with ``*``, ``?``, ``[…]`` and ``**``.
        recursive: look into the folders of folders.
        left_out: a folder that is passed over when it lies in one that is looked through, or is
            met by a pattern: that of the copies, say.

    Returns:
        The photos in the order of the arguments, each folder sorted by name (2.jpg before 10.jpg).

    Raises:
        SourceError: a path that does not exist.
        NoPhotosError: (a SourceError) a pattern that matches nothing, or no photo at all.
    """
    files: dict[str, Path] = {}
    archives: dict[str, Path] = {}
    unreadable: dict[Path, str] = {}
    passed_over: dict[str, str] = {}

    not_there = None if left_out is None else os.path.realpath(left_out)

    def keep_error(error: OSError) -> None:
        unreadable[Path(error.filename)] = f"{error.strerror}: its photos are not known"

    for argument in paths:
        given, chosen = expand(os.fspath(argument), keep_error, not_there)
        for path in given:
            if os.path.isdir(path):
                found: Iterable[Path] = walk(path, recursive, keep_error, not_there)
            else:
                found = (path,)
            for file in found:
                suffix = suffix_of(file.name)
                if is_passed_over(suffix) and not (chosen and file is path):
                    passed_over[os.path.normpath(file)] = suffix
                    continue
                target = archives if file.name.lower().endswith(TAR_SUFFIXES) else files
                target.setdefault(os.path.normpath(file), file)
    counted = Counter(ending for name, ending in passed_over.items() if name not in files)
    if not files and not archives and not unreadable:
        others = f" ({passed_over_text(counted)})" if counted else ""
        endings = ", ".join(sorted(scored_suffixes()))
        raise NoPhotosError(f"no photos there: none ends in {endings}{others}")
    return Sources(
        tuple(files.values()), tuple(archives.values()), tuple(unreadable.items()), counted
    )


def read_tar(archive: Path, passed_over: Counter[str] | None = None) -> Iterator[Photo]:
    """The photos of a tar archive in stored order (WebDataset shards are such), as a stream.

    Args:
        archive: the file.
        passed_over: counts photos of formats that cannot be scored, by their ending, and links.

    Raises:
        SourceError: the archive is damaged, cannot be read, or is none; what came before is whole.
    """
    taken: dict[str, int] = {}
    try:
        with open_tar(archive) as tar:
            for member in tar:
                is_link = member.islnk() or member.issym()
                if not (member.isfile() or is_link) or is_hidden(member.name):
                    continue
                suffix = suffix_of(member.name)
                if is_passed_over(suffix) and passed_over is not None:
                    passed_over[suffix] += 1
                if suffix not in scored_suffixes():
                    continue
                if is_link:  # its bytes have gone by: they are another member's
                    if passed_over is not None:
                        passed_over["links in archives"] += 1
                    continue
                # A byte more than the client takes: what is larger is refused, not held.
                data = read_member(tar, member, DEFAULT_MAX_BYTES + 1)
                name = _unique(display_name(f"{archive}/{member.name}"), taken)
                yield Photo(name, data=data)
    except DAMAGE as error:
        why = getattr(error, "strerror", None) or error
        raise SourceError(f"{display_name(archive)}: not a readable tar archive: {why}") from error


def _unique(name: str, taken: dict[str, int]) -> str:
    """The name, or with a number behind it if it is taken; taken from then on.

    Args:
        name: wanted.
        taken: names, and behind each the number that is tried next.
    """
    given, number = name, taken.get(name, _FIRST)
    while name in taken:
        name, number = f"{given}#{number}", number + 1
    taken[given] = number
    taken.setdefault(name, _FIRST)
    return name
