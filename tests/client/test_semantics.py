"""What a call means: the same on both clients, over the fake, the in-process server and Triton."""

from __future__ import annotations

import asyncio
import io
import itertools
import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nima_client import (
    AsyncNimaClient,
    ImageFailure,
    ImageRejectedError,
    ImageScore,
    NimaClient,
    ScoringError,
    Stage,
)
from nima_client.testing import FAKE_MODEL, FakeTransport, describe_model

Make = Callable[..., Any]


@pytest.fixture
def refused(photo: Callable[..., bytes]) -> bytes:
    """Passes the client's check of the header; every server refuses it: half of it is gone."""
    whole = photo(0, size=(256, 192), refuse=True)
    return whole[: len(whole) // 2]


def test_scores_come_in_order_and_are_distributions(
    caller: Make, backend: dict[str, Any], photo: Make
) -> None:
    images = [photo(i) for i in range(20)]
    scores = caller(**backend).score(images)
    assert [score.index for score in scores] == list(range(20))
    for score in scores:
        assert isinstance(score, ImageScore)
        assert sum(score.distribution) == pytest.approx(1.0, abs=1e-5)
        mean = sum(r * p for r, p in enumerate(score.distribution, 1))
        assert score.mean == pytest.approx(mean, abs=1e-4)
        variance = sum(p * (r - mean) ** 2 for r, p in enumerate(score.distribution, 1))
        assert score.std == pytest.approx(variance**0.5, abs=1e-3)
        assert score.percentile is not None
        assert 0.0 <= score.percentile <= 100.0
        assert score.model_name == "nima"
        assert score.checkpoint_name
        assert len(score.checkpoint_sha256) == 64
        assert score.request_id


@pytest.mark.parametrize("request_size", [1, 3, 8])
def test_a_score_does_not_depend_on_what_travels_with_it(
    caller: Make, backend: dict[str, Any], photo: Make, request_size: int
) -> None:
    images = [photo(i, size=(40 + i, 30)) for i in range(8)]
    alone = [caller(**backend).score_one(image) for image in images]
    together = caller(**backend, request_size=request_size).score(images)
    for one, other in zip(alone, together, strict=True):
        assert other.distribution == pytest.approx(one.distribution, abs=1e-6)


def test_no_images_no_scores(caller: Make, backend: dict[str, Any]) -> None:
    assert caller(**backend).score([]) == []


@pytest.mark.parametrize("request_size", [1, 4])
def test_bad_images_fail_alone_and_are_named(
    caller: Make, backend: dict[str, Any], photo: Make, refused: bytes, request_size: int
) -> None:
    images = [photo(0), b"text", photo(1), refused, photo(2), b"", refused, photo(3)]
    client = caller(**backend, request_size=request_size)
    results = client.score(images, on_error="return")
    codes = [r.code if isinstance(r, ImageFailure) else "" for r in results]
    assert codes == ["", "UNSUPPORTED", "", "UNDECODABLE", "", "EMPTY", "UNDECODABLE", ""]
    assert [r.index for r in results] == list(range(8))

    with pytest.raises(ScoringError) as caught:
        client.score(images)
    assert [failure.index for failure in caught.value.failures] == [1, 3, 5, 6]
    assert sorted(caught.value.scores) == [0, 2, 4, 7]
    assert caught.value.stages == {Stage.IMAGE}
    assert isinstance(caught.value.__cause__, ImageRejectedError)
    good = client.score([photo(i) for i in range(4)])
    for index, score in zip((0, 2, 4, 7), good, strict=True):
        assert caught.value.scores[index].mean == pytest.approx(score.mean, abs=1e-6)
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.failures == caught.value.failures
    assert again.scores == caught.value.scores


def test_one_bad_image_raises_as_itself(
    caller: Make, backend: dict[str, Any], refused: bytes
) -> None:
    client = caller(**backend)
    with pytest.raises(ImageRejectedError) as caught:
        client.score_one(refused)
    assert caught.value.code == "UNDECODABLE"
    assert caught.value.request_id
    with pytest.raises(ImageRejectedError, match="EMPTY"):
        client.score_one(b"")


def test_every_kind_of_input_gives_the_score_of_its_pixels(
    caller: Make, backend: dict[str, Any], tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    image = Image.fromarray(pixels)
    path = tmp_path / "photo.png"
    image.save(path, compress_level=1)
    data = path.read_bytes()
    with path.open("rb") as file:
        inputs = [str(path), path, data, bytearray(data), file, io.BytesIO(data), image, pixels]
        scores = caller(**backend).score(inputs)
    first = scores[0]
    for score in scores:
        assert score.distribution == first.distribution
    assert scores[0].source == scores[1].source == scores[4].source == str(path)
    assert scores[2].source is None


def test_a_stream_of_nothing_but_bad_images_can_be_cancelled() -> None:
    async def every(images: Iterator[bytes]) -> None:
        async with AsyncNimaClient(transport=FakeTransport()) as client:
            async for _ in client.score_iter(images, on_error="return"):
                pass

    async def for_a_while(images: Iterator[bytes]) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(every(images), 0.05)

    images = itertools.repeat(b"no photo", 300_000)
    asyncio.run(for_a_while(images))
    assert next(images)  # there were more


@pytest.mark.parametrize("dtype", [None, object])  # None: text, of a fixed width
def test_a_column_of_names_is_no_image(
    caller: Make, photo: Make, tmp_path: Path, dtype: Any
) -> None:
    for number in range(2):
        (tmp_path / f"{number}.jpg").write_bytes(photo(number))
    names = np.array([str(tmp_path / f"{number}.jpg") for number in range(2)], dtype)
    scores = caller(transport=FakeTransport()).score(names)
    assert [score.source for score in scores] == list(names)


def test_entries_of_a_folder_are_paths_of_bytes_too(
    caller: Make, photo: Make, tmp_path: Path
) -> None:
    (tmp_path / "0.jpg").write_bytes(photo(0))
    scores = caller(transport=FakeTransport()).score(os.scandir(os.fsencode(tmp_path)))
    assert [score.source for score in scores] == [str(tmp_path / "0.jpg")]


def test_a_missing_file_is_one_failure(
    caller: Make, backend: dict[str, Any], photo: Make, tmp_path: Path
) -> None:
    results = caller(**backend).score([photo(0), tmp_path / "none.jpg"], on_error="return")
    assert isinstance(results[0], ImageScore)
    assert results[1].code == "UNREADABLE"
    assert results[1].source == str(tmp_path / "none.jpg")


@pytest.mark.parametrize("ordered", [True, False])
def test_an_endless_stream(
    caller: Make, backend: dict[str, Any], photo: Make, ordered: bool
) -> None:
    few = [photo(i) for i in range(4)]
    read = 0

    def endless() -> Any:
        nonlocal read
        for image in itertools.cycle(few):
            read += 1
            yield image

    client = caller(**backend, max_in_flight=4)
    stream = client.score_iter(endless(), ordered=ordered)
    taken = [result.index for result in itertools.islice(stream, 30)]
    stream.close()
    assert len(set(taken)) == 30
    if ordered:
        assert taken == list(range(30))
    # Ahead of what was taken: the window, and what overtook a slow request.
    assert read <= 30 + 50
    # The client is as good as new.
    assert len(client.score(few)) == 4


class Expected:
    """An iterable with a length that somebody guessed, as tqdm makes one."""

    def __init__(self, images: list[bytes], length: int | Exception) -> None:
        self.images = images
        self.length = length

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.images)

    def __len__(self) -> int:
        if isinstance(self.length, Exception):
            raise self.length
        return self.length


@pytest.mark.parametrize(
    "length", [0, 3, 30, 1000, TypeError("no len()"), NotImplementedError(), OverflowError()]
)
@pytest.mark.parametrize("as_path", [False, True])
def test_a_length_is_a_hint_and_the_end_is_the_end(
    caller: Make, photo: Make, tmp_path: Path, length: int | Exception, as_path: bool
) -> None:
    images: list[Any] = [photo(i) for i in range(30)]
    if as_path:
        paths = [tmp_path / f"{i}.jpg" for i in range(30)]
        for path, data in zip(paths, images, strict=True):
            path.write_bytes(data)
        images = paths
    client = caller(transport=FakeTransport(workers=4))
    assert [s.index for s in client.score(Expected(images, length))] == list(range(30))
    assert len(list(client.score_iter(Expected(images, length)))) == 30


def test_a_stream_with_a_length_sends_what_it_has(
    caller: Make, photo: Make, tmp_path: Path
) -> None:
    fake = FakeTransport(description=describe_model(replace(FAKE_MODEL, request_size=4)))
    client = caller(transport=fake)
    sent: list[int] = []

    class Slow(Expected):
        def __iter__(self) -> Iterator[Any]:
            for _ in self.images:
                sent.append(len(fake.requests))
                yield path

    path = tmp_path / "photo.jpg"
    path.write_bytes(photo(0))
    assert len(client.score(Slow([b""] * 8, 8))) == 8
    # The next image of a stream may be a long time coming: the first does not wait for it.
    assert sent[3] >= 1


def test_the_end_of_a_list_is_known_with_its_last_image(photo: Make) -> None:
    fake = FakeTransport()
    ways: list[str] = []
    for name in ("infer", "submit"):
        real = getattr(fake, name)
        setattr(fake, name, lambda r, real=real, name=name: (ways.append(name), real(r))[1])
    with NimaClient(transport=fake) as client:
        client.score_one(photo(0))
        client.score((photo(0),))
        client.score(np.zeros((1, 8, 8, 3), np.uint8))
        client.score(iter([photo(0)]))
    assert ways == ["infer", "infer", "infer", "submit"]


def test_a_stream_raises_or_yields_failures(
    caller: Make, backend: dict[str, Any], photo: Make, refused: bytes
) -> None:
    client = caller(**backend)
    images = [photo(0), refused, photo(1)]
    results = list(client.score_iter(iter(images), on_error="return"))
    assert [isinstance(r, ImageFailure) for r in results] == [False, True, False]
    stream = client.score_iter(iter(images))
    assert next(stream).index == 0
    with pytest.raises(ImageRejectedError) as caught:
        next(stream)
    assert caught.value.index == 1


def test_model_info(caller: Make, backend: dict[str, Any], photo: Make) -> None:
    client = caller(**backend)
    info = client.model_info()
    assert info.input_type == "BYTES"
    assert info.max_batch_size >= 8
    score = client.score_one(photo(0))
    assert score.model_version in info.versions
    assert score.checkpoint_sha256 == info.served.checkpoint_sha256
    assert score.percentile == info.served.percentile(score.mean)


@pytest.mark.parametrize("single", ["photo.jpg", b"bytes", Path("photo.jpg"), io.BytesIO(b"x")])
def test_one_image_where_a_list_is_meant_is_refused(
    caller: Make, backend: dict[str, Any], single: Any
) -> None:
    with pytest.raises(TypeError, match=r"list|score_one"):
        caller(**backend).score(single)


def test_a_folder_is_no_list(caller: Make, backend: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="is a folder: pass a list of its files"):
        caller(**backend).score(tmp_path)


def test_what_is_no_image_is_a_type_error(caller: Make, backend: dict[str, Any]) -> None:
    client = caller(**backend)
    with pytest.raises(TypeError, match="path, bytes"):
        client.score([42])
    with pytest.raises(TypeError, match="uint8"):
        client.score([np.zeros((8, 8, 3), np.float32)])
    with pytest.raises(TypeError, match="channels first"):
        client.score([np.zeros((3, 8, 8), np.uint8)])
    with pytest.raises(ValueError, match="on_error"):
        client.score([], on_error="ignore")
