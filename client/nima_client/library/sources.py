"""Where photos come from: files, folders, patterns and tar shards."""

from __future__ import annotations

import glob
import itertools
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nima_client._names import display_name
from nima_client.contract import DEFAULT_MAX_BYTES

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
)
"""Files of a folder or an archive with these endings count as photos; case does not matter."""

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


class SourceError(ValueError):
    """A path that names nothing to score; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Photo:
    """One photo to score.

    Attributes:
        name: how results call it; unique in a run. Bytes of a path that are not UTF-8 are escaped.
        path: its file, which is read when its turn comes; or else
        data: its bytes; or else
        array: its pixels, uint8 [H, W, 3].
    """

    name: str
    path: Path | None = None
    data: bytes | None = None
    array: npt.NDArray[np.uint8] | None = None

    @property
    def image(self) -> Path | bytes | npt.NDArray[np.uint8]:
        """What the client's ``score`` takes."""
        for given in (self.path, self.data, self.array):
            if given is not None:
                return given
        raise ValueError(f"{self.name}: neither a path nor data nor an array")


def printable(text: str) -> str:
    """Text without what would command a terminal or turn the direction of writing on a page."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def common_folder(names: Sequence[str]) -> str:
    """The folder that all names share, with its slash; empty where there is none."""
    if len(names) < 2:
        return ""
    shared = names[0].split("/")[:-1]
    for name in names[1:]:
        parts = name.split("/")[:-1]
        pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(shared, parts))
        shared = [part for part, _ in pairs]
    return "".join(part + "/" for part in shared)


@dataclass(frozen=True)
class Sources:
    """What one run has to score.

    Attributes:
        files: photo files, in order, without duplicates.
        archives: tar shards, in order; their members come after the files.
    """

    files: tuple[Path, ...]
    archives: tuple[Path, ...] = ()

    @property
    def known_total(self) -> int | None:
        """Number of photos, or None while it is not known (archives are read only once)."""
        return None if self.archives else len(self.files)

    def __iter__(self) -> Iterator[Photo]:
        for path in self.files:
            yield Photo(display_name(path), path=path)
        for archive in self.archives:
            yield from read_tar(archive)


def find_photos(paths: Iterable[str | os.PathLike[str]], *, recursive: bool = True) -> Sources:
    """Everything that the arguments of a command name.

    Args:
        paths: files (scored whatever their ending), folders (photos by ending; hidden files and
            folders are passed over, links to folders are not followed), tar archives, or patterns
            with ``*``, ``?``, ``[…]`` and ``**``.
        recursive: look into the folders of folders.

    Returns:
        The photos in the order of the arguments, each folder sorted by name (2.jpg before 10.jpg).

    Raises:
        SourceError: a path that does not exist, a pattern that matches nothing, or no photo at all.
    """
    files: dict[str, Path] = {}
    archives: dict[str, Path] = {}
    for argument in paths:
        for path in _expand(os.fspath(argument)):
            if path.is_dir():
                found: Iterable[Path] = _walk(path, recursive)
            else:
                found = (path,)
            for file in found:
                target = archives if file.name.lower().endswith(TAR_SUFFIXES) else files
                target.setdefault(os.path.normpath(file), file)
    if not files and not archives:
        raise SourceError(f"no photos there: none ends in {', '.join(sorted(IMAGE_SUFFIXES))}")
    return Sources(tuple(files.values()), tuple(archives.values()))


def is_photo(name: str) -> bool:
    """Whether a file of this name or path counts as a photo of its folder; hidden ones do not."""
    base = os.path.basename(name)
    return not base.startswith(".") and os.path.splitext(base)[1].lower() in IMAGE_SUFFIXES


def read_tar(archive: Path) -> Iterator[Photo]:
    """The photos of a tar archive in stored order (WebDataset shards are such), as a stream.

    Raises:
        SourceError: the archive is damaged, or is none.
    """
    try:
        with tarfile.open(archive, "r|*") as tar:
            for member in tar:
                if not member.isfile() or not is_photo(member.name):
                    continue
                file = tar.extractfile(member)
                if file is not None:
                    # A byte more than the client takes: what is larger is refused, not held.
                    data = file.read(DEFAULT_MAX_BYTES + 1)
                    yield Photo(display_name(f"{archive}/{member.name}"), data=data)
    except (tarfile.TarError, EOFError) as error:
        raise SourceError(f"{archive}: not a readable tar archive: {error}") from error


def _expand(argument: str) -> list[Path]:
    path = Path(argument)
    # A file may really be called "photo[1].jpg".
    if path.exists() or path.is_symlink():
        return [path]
    if glob.has_magic(argument):
        matches = sorted(glob.glob(os.path.expanduser(argument), recursive=True))
        if not matches:
            raise SourceError(f"nothing matches {argument!r}")
        return [m for m in map(Path, matches) if m.is_dir() or is_photo(m.name) or _is_tar(m)]
    raise SourceError(f"{argument}: no such file or folder")


def _walk(folder: Path, recursive: bool) -> Iterator[Path]:
    for here, folders, names in os.walk(folder):
        folders[:] = (f for f in folders if recursive and not f.startswith("."))
        folders.sort(key=_natural)
        for name in sorted(names, key=_natural):
            if is_photo(name) or _is_tar(Path(name)):
                yield Path(here, name)


def _natural(name: str) -> tuple[tuple[tuple[int, str], ...], str]:
    """Sort key that counts the digits in a name as numbers."""
    parts = re.split(r"([0-9]+)", name)
    return tuple((int(p), "") if p.isdecimal() else (-1, p.casefold()) for p in parts), name


def _is_tar(path: Path) -> bool:
    return not path.name.startswith(".") and path.name.lower().endswith(TAR_SUFFIXES)
