"""Small pictures for a page, as data URIs."""

from __future__ import annotations

import base64
import contextlib
import io
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from nima_client._heic import decode_photo
from nima_client._names import archives_above, display_name, named_path
from nima_client.library.folders import SourceError
from nima_client.library.sources import read_tar
from nima_client.preprocess import ImageRejected, PreprocessSpec

_QUALITY = 80
_WORKERS = min(os.cpu_count() or 1, 16)


class Thumbnails:
    """Makes thumbnails of photo files and of members of tar archives.

    Args:
        side: longest side in pixels.
        root: folder that relative names are looked up in.

    Attributes:
        missing: photos of the last :meth:`make` that had no picture.
    """

    def __init__(self, side: int = 320, root: Path | None = None) -> None:
        self._side = side
        self._root = root or Path()
        self.missing = 0

    def make(self, names: Iterable[str]) -> Iterator[tuple[str, str | None]]:
        """Thumbnails of photos, in order.

        Args:
            names: photos as results call them.

        Yields:
            Name and ``data:image/jpeg;base64,…``; None for a photo that is gone or unreadable.
        """
        names = list(names)
        self.missing = 0
        # Decoding leaves the interpreter's lock alone.
        with ThreadPoolExecutor(_WORKERS) as pool:
            archived = self._from_archives(names, pool)

            def one(name: str) -> str | None:
                if name in archived:
                    return archived[name].result()
                try:
                    data = self._path(name).read_bytes()
                except (OSError, ValueError):
                    return None
                return self._encode(data)

            for name, picture in zip(names, pool.map(one, names), strict=True):
                self.missing += picture is None
                yield name, picture

    def file_of(self, name: str) -> Path | None:
        """The file of a photo; None of one that is gone, or has none: inside an archive, say."""
        path = self._path(name)
        return path if os.path.isfile(path) else None

    def _path(self, name: str) -> Path:
        return named_path(str(self._root / name))

    def _encode(self, data: bytes) -> str | None:
        try:
            image = decode_photo(data, PreprocessSpec(resize_size=self._side, crop_size=self._side))
        except ImageRejected:
            return None
        image.thumbnail((self._side, self._side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()

    def _from_archives(
        self, names: list[str], pool: ThreadPoolExecutor
    ) -> dict[str, Future[str | None]]:
        """Thumbnails of photos inside archives, each archive read once, few originals at a time."""
        wanted = set(names)
        archives = {a for name in names for a in archives_above(self._root / name)}
        found: dict[str, Future[str | None]] = {}
        under_way: deque[Future[str | None]] = deque()
        for archive in sorted(archives):
            # One that is damaged has lost its later pictures.
            with contextlib.suppress(SourceError):
                for photo in read_tar(archive):
                    name = photo.name
                    if name not in wanted:
                        # Not normalized: "./" before a member is a part of its name.
                        name = name.removeprefix(os.path.join(display_name(self._root), ""))
                    if name not in wanted or photo.data is None:
                        continue
                    found[name] = pool.submit(self._encode, photo.data)
                    under_way.append(found[name])
                    if len(under_way) > _WORKERS:
                        under_way.popleft().result()
        return found
