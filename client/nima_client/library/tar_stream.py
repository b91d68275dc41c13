"""A tar archive read once from end to end, whoever made it.

``tarfile`` trusts its input: it reads a header as long as this says it is, unpacks without a limit,
keeps each member that has gone by, and takes some damaged headers for the end of the archive.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

DAMAGE = (
    tarfile.TarError,
    EOFError,
    OSError,
    zlib.error,
    lzma.LZMAError,
    # What tarfile makes of numbers and names in a header that are none, and of many in a row.
    ValueError,
    OverflowError,
    RecursionError,
)
"""What an archive that is damaged, or none, raises as it is opened and read."""

_MOST_HEADER = 1 << 20
_BLOCK = 1 << 16


@contextmanager
def open_tar(archive: Path) -> Iterator[tarfile.TarFile]:
    """The archive, compressed or not, to be iterated over once.

    Raises:
        Exception: one of :data:`DAMAGE`.
    """
    with ExitStack() as stack:
        file = stack.enter_context(archive.open("rb"))
        unpacked = stack.enter_context(_unpacked(file))
        source: Any = _Metered(unpacked)
        yield stack.enter_context(_Tar(archive, "r", source, tarinfo=_Member))


def read_member(tar: tarfile.TarFile, member: tarfile.TarInfo, most: int) -> bytes:
    """The bytes of a regular file, so many of them at most.

    Raises:
        Exception: one of :data:`DAMAGE`.
    """
    file = tar.extractfile(member)
    assert file is not None
    if not member.issparse():
        return file.read(most)
    # Read at once, it would be copied anew for each of what may be 100,000 holes.
    data = bytearray()
    while len(data) < most and (block := file.read(min(_BLOCK, most - len(data)))):
        data += block
    return bytes(data)


def _unpacked(file: io.BufferedReader) -> IO[bytes]:
    head = file.peek(10)
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    if head.startswith(b"BZh"):
        return bz2.BZ2File(file)
    if head.startswith((b"\xfd7zXZ", b"\x5d\x00\x00\x80")):
        return lzma.LZMAFile(file)
    return file


class _Tar(tarfile.TarFile):
    def next(self) -> tarfile.TarInfo | None:
        source: Any = self.fileobj
        source.header_left = _MOST_HEADER
        try:
            return super().next()
        finally:
            source.header_left = None
            self.members.clear()  # type: ignore[attr-defined]


class _Metered:
    """The bytes of an archive.

    Attributes:
        header_left: how many may still be read of what stands before a member; None within one.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._place = 0  # a pipe does not know its own
        self.header_left: int | None = None

    def read(self, size: int) -> bytes:
        if self.header_left is not None:
            self.header_left -= size
            if self.header_left < 0:
                raise tarfile.ReadError(f"a header of more than {_MOST_HEADER} bytes")
        return self._read(size)

    def seek(self, place: int) -> int:
        """Read on to there."""
        if place < self._place:
            raise tarfile.ReadError("a size below 0")
        while self._place < place:
            if not self._read(min(place - self._place, _BLOCK)):
                raise tarfile.ReadError("unexpected end of data")
        return place

    def tell(self) -> int:
        return self._place

    def _read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._place += len(data)
        return data


class _Member(tarfile.TarInfo):
    """A header; unlike tarfile, which takes some damaged ones for the end of the archive.

    Both methods raise a ReadError where one is cut short or damaged.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if not buf.strip(b"\0"):  # nothing more, or the zeros that end an archive
                raise
            raise tarfile.ReadError(str(error)) from error

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _Member:
        try:
            return super().fromtarfile(tar)
        except tarfile.InvalidHeaderError as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(error)) from error
