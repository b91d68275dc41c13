"""Fixtures of the client's tests: small photos, and a server inside the test process."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

# Test modules are imported by path: what they share lies here.
sys.path.insert(0, str(Path(__file__).parent / "support"))


def make_photo(number: int = 0, size: tuple[int, int] = (16, 12), refuse: bool = False) -> bytes:
    """A small JPEG; every number gives another one."""
    image = Image.new("RGB", size, (number % 256, number // 256 % 256, 77))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, comment=b"REFUSE" if refuse else f"{number}".encode())
    return buffer.getvalue()


@pytest.fixture(scope="session")
def photo() -> Callable[..., bytes]:
    """``photo(number, size=(16, 12), refuse=False)``: a small JPEG that the server may refuse."""
    return make_photo


@pytest.fixture
def server() -> Iterator[object]:
    """A well-behaved KServe server on a free loopback port."""
    from kserve_server import KServeServer

    with KServeServer() as running:
        yield running
