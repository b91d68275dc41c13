"""One image that cannot be read fails alone, whatever Python says of it."""

from __future__ import annotations

import io
import os
import tempfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from nima_client import ImageFailure, ImageScore, Limits
from nima_client._images import PrepareOptions, prepare
from nima_client.errors import ImageRejectedError
from nima_client.testing import FakeTransport

Make = Callable[..., Any]


def closed_file() -> io.BytesIO:
    file = io.BytesIO(b"")
    file.close()
    return file


def closed_image() -> Image.Image:
    image = Image.new("RGB", (8, 8))
    image.close()
    return image


def damaged_png() -> Image.Image:
    """Still to be decoded; Pillow says ``SyntaxError`` of the chunk behind its pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    data = buffer.getvalue()
    start = data.index(b"IDAT")
    return Image.open(io.BytesIO(data[: start - 4] + b"\0\0\0\0IDAT" + data[start + 8 :]))


def left_image() -> Image.Image:
    """Opened and closed again by ``with``, before anybody looked at its pixels."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photo.png"
        Image.new("RGB", (8, 8)).save(path)
        with Image.open(path) as image:
            return image


def released() -> memoryview:
    view = memoryview(b"photo")
    view.release()
    return view


class DamagedMember:
    """Of an archive; ``zipfile`` has an exception of its own for it."""

    def read(self, size: int) -> bytes:
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("photo.jpg", b"the photo")
        damaged = archive.getvalue().replace(b"the photo", b"the phota")
        return zipfile.ZipFile(io.BytesIO(damaged)).open("photo.jpg").read(size)


@pytest.mark.parametrize(
    "bad",
    [
        "photo\0.jpg",
        Path("photo\0.jpg"),
        "photo\ud800.jpg",
        closed_file(),
        closed_image(),
        damaged_png(),
        left_image(),
        released(),
        DamagedMember(),
    ],
)
def test_what_cannot_be_read_loses_nothing_else(caller: Make, photo: Make, bad: Any) -> None:
    client = caller(transport=FakeTransport())
    results = client.score([photo(0), bad, photo(1)], on_error="return")
    assert [type(r) for r in results] == [ImageScore, ImageFailure, ImageScore]
    assert (results[1].index, results[1].code) == (1, "UNREADABLE")
    assert "\n" not in results[1].message


def test_a_picture_whose_file_is_closed_says_what_to_do() -> None:
    with pytest.raises(ImageRejectedError, match=r"load\(\)"):
        prepare(left_image(), PrepareOptions(Limits()))


def test_a_name_that_is_empty_is_no_folder() -> None:
    with pytest.raises(ImageRejectedError, match="No such file"):
        prepare("", PrepareOptions(Limits()))


def test_what_is_no_image_is_still_a_type_error(caller: Make, photo: Make) -> None:
    with pytest.raises(TypeError, match="an image is"):
        caller(transport=FakeTransport()).score([photo(0), 7], on_error="return")


@pytest.mark.timeout(30)
@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no such device")
def test_a_device_without_end_is_read_to_the_limit() -> None:
    options = PrepareOptions(Limits(max_bytes=100_000))
    with pytest.raises(ImageRejectedError) as caught:
        prepare("/dev/zero", options)
    assert (caught.value.code, caught.value.detail) == (
        "TOO_LARGE", "more bytes than the limit of 100000",
    )  # fmt: skip


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="no such file")
def test_a_file_longer_than_its_system_says_is_read_to_the_limit() -> None:
    assert os.stat("/proc/self/smaps").st_size == 0
    with pytest.raises(ImageRejectedError) as caught:
        prepare("/proc/self/smaps", PrepareOptions(Limits(max_bytes=1000)))
    assert (caught.value.code, caught.value.detail) == (
        "TOO_LARGE",
        "more bytes than the limit of 1000",
    )


@pytest.mark.timeout(30)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no fifos here")
def test_a_pipe_is_read_to_its_end(photo: Make, tmp_path: Path) -> None:
    pipe, data = tmp_path / "pipe", photo(0)
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    assert prepare(pipe, PrepareOptions(Limits())).data == data
    writer.join()
