"""The photos of a folder: found by what labels call them, and each file read and checked once.

Every file is read once: hashed, its header inspected, decoded whole, and reduced to a difference
hash that finds near-duplicates. The checks are kept in a JSON-lines file, so that a killed run
goes on.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from nima_client.library.formats import IMAGE_SUFFIXES
from nima_client.preprocess import (
    DEFAULT_LIMITS,
    ImageRejected,
    PreprocessSpec,
    decode,
    inspect_header,
)
from nima_training.split import grey_thumbnail, thumbnail_hash
from nima_training.workers import worker_pool


@dataclass(frozen=True)
class FileCheck:
    """What one reading of a file found. ``error`` is None for a usable photo."""

    path: str
    size: int
    mtime_ns: int
    sha256: str = ""
    width: int = 0
    height: int = 0
    dhash: str = ""
    thumbnail: str = ""
    """Of :func:`nima_training.split.grey_thumbnail`, row by row in hexadecimal."""
    error: str | None = None


def check_file(path: Path) -> FileCheck:
    """Read, decode and hash one file; never raises for a bad one."""
    try:
        stat = path.stat()
        if not path.is_file():  # a pipe would be waited for
            return FileCheck(str(path), 0, 0, error="unreadable: not a file")
        data = path.read_bytes()
    except OSError as error:
        return FileCheck(str(path), 0, 0, error=f"unreadable: {error.strerror}")
    common = (str(path), stat.st_size, stat.st_mtime_ns, hashlib.sha256(data).hexdigest())
    try:
        header = inspect_header(data, DEFAULT_LIMITS)
        image = decode(data, PreprocessSpec(), DEFAULT_LIMITS)
    except ImageRejected as error:
        return FileCheck(*common, error=f"{error.code.value.lower()}: {error.detail}")
    grey = grey_thumbnail(image)
    digest = f"{thumbnail_hash(grey):016x}"
    return FileCheck(*common, header.width, header.height, digest, grey.tobytes().hex())


class PhotoNames:
    """The photos below a folder, by what a label file may call them.

    A name is a photo's path from the folder, or else its file name, or else its file name without
    the suffix. Case, and how Unicode composes a letter, which differs between systems, decide only
    between photos whose names differ in nothing else.
    """

    def __init__(self, photos: Path) -> None:
        """Search the folder.

        Raises:
            ValueError: it is not a folder.
        """
        if not photos.is_dir():
            raise ValueError(f"{photos} is not a folder of photos")
        # One table for each kind of name, in order of precedence: name -> (name, path) of photos.
        self._tables: list[dict[str, list[tuple[str, Path]]]] = [{}, {}, {}]
        for path in sorted(photos.rglob("*")):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                names = (path.relative_to(photos).as_posix(), path.name, path.stem)
                for name, known in zip(names, self._tables, strict=True):
                    known.setdefault(_composed(name).lower(), []).append((name, path))

    def find(self, image_id: str) -> list[Path]:
        """The photos that ``image_id`` names: none, one, or several it cannot tell apart."""
        wanted = str(PurePosixPath(image_id))  # as find(1) prints ./it
        for known in self._tables:
            if found := known.get(_composed(wanted).lower()):
                for form in (str, _composed):
                    if exact := [path for name, path in found if form(name) == form(wanted)]:
                        return exact
                return [path for _, path in found]
        return []


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def check_files(
    paths: list[Path],
    workers: int,
    cache: Path | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[FileCheck]:
    """:func:`check_file` for each path in order, reusing checks of unchanged files in ``cache``.

    ``progress`` is called with the number of files read so far and of those to read.
    """
    known: dict[str, FileCheck] = {}
    if cache is not None and cache.exists():
        for line in cache.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                check = FileCheck(**json.loads(line))
            except (json.JSONDecodeError, TypeError):
                continue  # a line that a kill cut short, or a damaged disk
            known[check.path] = check

    def fresh(path: Path) -> bool:
        old = known.get(str(path))
        if old is None or (old.error is None and not old.thumbnail):  # of an older version
            return True
        try:
            stat = path.stat()
        except OSError:  # a link that leads nowhere: reading it tells the reason
            return True
        return (old.size, old.mtime_ns) != (stat.st_size, stat.st_mtime_ns)

    todo = [path for path in paths if fresh(path)]
    if workers > 1 and len(todo) > 64:
        with worker_pool(workers) as executor:
            new = executor.map(check_file, todo, chunksize=32)
            known |= _remember(new, cache, lambda done: progress(done, len(todo)))
    else:
        new = (check_file(path) for path in todo)
        known |= _remember(new, cache, lambda done: progress(done, len(todo)))
    yield from (known[str(path)] for path in paths)


def _remember(
    checks: Iterator[FileCheck], cache: Path | None, progress: Callable[[int], None]
) -> dict[str, FileCheck]:
    result = {}
    file = cache.open("a", encoding="utf-8") if cache is not None else None
    try:
        for done, check in enumerate(checks, start=1):
            result[check.path] = check
            progress(done)
            if file is not None:
                file.write(json.dumps(asdict(check)) + "\n")
    finally:
        if file is not None:
            file.close()
    return result
