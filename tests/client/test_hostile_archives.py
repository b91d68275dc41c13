"""Tar archives that somebody made to do harm, or that a program damaged in its own way."""

from __future__ import annotations

import bz2
import gzip
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from nima_client import NimaClient
from nima_client.library.rows import FailedRow, Row
from nima_client.library.run import score_photos
from nima_client.library.sources import find_photos, read_tar
from nima_client.testing import FakeTransport

Photo = Callable[..., bytes]

END = bytes(1024)


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def member(name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    return header(name, len(data), kind) + data + bytes(-len(data) % 512)


def pax(**fields: str) -> bytes:
    records = b""
    for name, value in fields.items():
        record = f" {name.replace('_', '.')}={value}\n".encode()
        length = len(record)
        while len(str(length)) + len(record) != length:
            length = len(str(length)) + len(record)
        records += str(length).encode() + record
    return member("pax", records, tarfile.XHDTYPE)


SPARSE = pax(GNU_sparse_major="1", GNU_sparse_minor="0", GNU_sparse_realsize="100")


@pytest.mark.parametrize(
    ("hostile", "said"),
    [
        (header("x", 1 << 33, tarfile.XHDTYPE) + bytes(2 << 20), "header of more than"),
        (header("x", 1 << 33, tarfile.XGLTYPE) + bytes(2 << 20), "header of more than"),
        (header("x", 1 << 33, tarfile.GNUTYPE_LONGNAME) + bytes(2 << 20), "header of more than"),
        (SPARSE + header("s.jpg", 1 << 33) + b"9" * 9 + b"\n0" * (1 << 20), "header of more than"),
        (pax(comment="x") * 1000, ""),
        (member("x", b"n.jpg\0", tarfile.GNUTYPE_LONGNAME) * 1500, ""),
        (SPARSE + member("s.jpg", b"no number\n"), ""),
        (pax(GNU_sparse_map="a,b", GNU_sparse_size="9") + member("s.jpg", b""), ""),
        (member("x", b"9" * 5000 + b" path=x\n", tarfile.XHDTYPE), ""),
        (member("x", b"9" * 20 + b" path=x\n", tarfile.XHDTYPE), ""),
        (member("x", b"0 path=x\n", tarfile.XHDTYPE) + member("b.jpg", b""), "invalid header"),
        (header("notes.txt", 1 << 60), "unexpected end"),
    ],
    ids=[
        "fields without end", "fields for all", "name without end", "map without end",
        "fields of fields", "names of names", "map of words", "list of words", "digits",
        "length beyond all", "no length", "skipped beyond the end",
    ],
)  # fmt: skip
def test_a_hostile_header_is_one_failure_and_the_rest_is_scored(
    tmp_path: Path, photo: Photo, hostile: bytes, said: str
) -> None:
    archive = tmp_path / "0.tar.gz"
    with gzip.open(archive, "wb", compresslevel=1) as file:
        file.write(member("a.jpg", photo(1)) + hostile + END)
    (tmp_path / "1.tar").write_bytes(member("z.jpg", photo(2)) + END)
    with NimaClient(transport=FakeTransport()) as client:
        before, failure, after = score_photos(client, find_photos([tmp_path]))
    assert isinstance(before, Row)
    assert before.file == f"{archive}/a.jpg"
    assert isinstance(after, Row)
    assert after.file == f"{tmp_path}/1.tar/z.jpg"
    assert isinstance(failure, FailedRow)
    assert failure.file == str(archive)
    assert re.match(f"not a readable tar archive: .*{said}", failure.message)


def test_ten_thousand_members_of_one_name_take_no_longer_than_others(tmp_path: Path) -> None:
    """Once each looked through all numbers before its own, and unpacked the rest once more."""
    archive = tmp_path / "0.tar.bz2"
    archive.write_bytes(bz2.compress(header("a.jpg") * 50_000 + END))
    names = [photo.name for photo in read_tar(archive)]
    assert names[:2] == [f"{archive}/a.jpg", f"{archive}/a.jpg#2"]
    assert names[-1] == f"{archive}/a.jpg#50000"
    assert len(set(names)) == 50_000


def test_members_that_have_gone_by_are_not_kept(tmp_path: Path) -> None:
    from nima_client.library.tar_stream import open_tar

    archive = tmp_path / "0.tar"
    archive.write_bytes(b"".join(member(f"{n}.jpg", b"x") for n in range(100)) + END)
    with open_tar(archive) as tar:
        assert [len(tar.members) for _ in tar] == [0] * 100  # type: ignore[attr-defined]


def test_an_archive_packed_in_parts_is_whole(tmp_path: Path, photo: Photo) -> None:
    """As pigz, bgzip and `cat a.gz b.gz` make them."""
    archive = tmp_path / "0.tar.gz"
    data = b"".join(member(f"{n}.jpg", photo(n, size=(300, 200))) for n in range(4)) + END
    half = len(data) // 2
    archive.write_bytes(gzip.compress(data[:half]) + gzip.compress(data[half:]))
    assert [photo.data for photo in read_tar(archive)] == [
        photo(n, size=(300, 200)) for n in range(4)
    ]


def test_a_photo_with_holes_is_read_whole(tmp_path: Path) -> None:
    archive = tmp_path / "0.tar"
    holes = pax(GNU_sparse_map="0,5,100000,5", GNU_sparse_size="200000")
    archive.write_bytes(holes + member("s.jpg", b"beginevery") + END)
    (photo,) = read_tar(archive)
    assert photo.data == b"begin" + bytes(99_995) + b"every" + bytes(99_995)
