"""An iterable that raises: what it gave before is scored and handed over, then its error comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from kserve_server import KServeServer

from nima_client import (
    NO_RETRIES,
    AsyncNimaClient,
    ImageFailure,
    ImageRejectedError,
    ImageScore,
    NimaClient,
)

Make = Callable[..., Any]


def failing(images: list[Any], error: BaseException | None = None) -> Iterator[Any]:
    yield from images
    raise error or RuntimeError("the source broke")


@pytest.fixture
def slow(server: KServeServer) -> KServeServer:
    """Answers late enough for requests to be under way as the iterable breaks."""
    server.delay = 0.05
    return server


def until_it_breaks(stream: Iterator[Any], error: type[BaseException]) -> list[Any]:
    results: list[Any] = []
    with pytest.raises(error):
        results.extend(stream)  # what came before the error stays
    return results


@pytest.mark.timeout(60)
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("on_error", ["raise", "return"])
@pytest.mark.parametrize("options", [{}, {"request_size": 8}, {"request_size": 1, "max_side": 99}])
def test_what_was_accepted_comes_out_before_the_error(
    caller: Make,
    photo: Make,
    slow: KServeServer,
    tmp_path: Path,
    ordered: bool,
    on_error: str,
    options: Any,
) -> None:
    images: list[Any] = [photo(i) for i in range(50)]
    images[7] = tmp_path / "photo.jpg"
    images[7].write_bytes(photo(7))
    client = caller(slow.url, **options)
    stream = client.score_iter(failing(images), ordered=ordered, on_error=on_error)
    results = until_it_breaks(stream, RuntimeError)
    indices = [score.index for score in results]
    assert (indices if ordered else sorted(indices)) == list(range(50))


@pytest.mark.timeout(60)
def test_what_is_no_image_ends_a_stream_behind_the_results(
    caller: Make, slow: KServeServer, photo: Make
) -> None:
    client = caller(slow.url)
    images = [*(photo(i) for i in range(10)), 7, photo(11)]
    assert len(until_it_breaks(client.score_iter(images), TypeError)) == 10


@pytest.mark.timeout(60)
def test_an_image_that_failed_before_goes_first(
    caller: Make, slow: KServeServer, photo: Make
) -> None:
    client = caller(slow.url)
    stream = client.score_iter(failing([photo(0), b"no photo", photo(2)]))
    assert len(until_it_breaks(stream, ImageRejectedError)) == 1
    stream = client.score_iter(failing([photo(0), b"no photo", photo(2)]), on_error="return")
    results = until_it_breaks(stream, RuntimeError)
    assert [type(r) for r in results] == [ImageScore, ImageFailure, ImageScore]


@pytest.mark.timeout(60)
def test_a_server_that_is_gone_too_leaves_failures_and_the_source_s_error(
    caller: Make, slow: KServeServer, photo: Make
) -> None:
    def gone(number: int, images: list[bytes], context: Any) -> None:
        context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    slow.behaviour = gone
    client = caller(slow.url, retry=NO_RETRIES, request_size=4)
    stream = client.score_iter(failing([photo(i) for i in range(6)]), on_error="return")
    assert [r.code for r in until_it_breaks(stream, RuntimeError)] == ["UNREACHABLE"] * 6


@pytest.mark.timeout(60)
@pytest.mark.parametrize("on_error", ["raise", "return"])
def test_a_list_raises_at_once(
    caller: Make, server: KServeServer, photo: Make, on_error: str
) -> None:
    server.delay = 10.0
    client = caller(server.url, request_size=1)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="the source broke"):
        client.score(failing([photo(0), photo(1)]), on_error=on_error)
    assert time.monotonic() - start < 5


@pytest.mark.timeout(60)
def test_ctrl_c_in_an_iterable_waits_for_nothing(server: KServeServer, photo: Make) -> None:
    server.delay = 10.0
    start = time.monotonic()
    with NimaClient(server.url, request_size=1) as client:
        stream = client.score_iter(failing([photo(0)], KeyboardInterrupt()))
        assert until_it_breaks(stream, KeyboardInterrupt) == []
    assert time.monotonic() - start < 5


@pytest.mark.timeout(60)
@pytest.mark.parametrize("ordered", [True, False])
def test_an_async_iterable_that_raises(slow: KServeServer, photo: Make, ordered: bool) -> None:
    async def images() -> AsyncIterator[bytes]:
        for i in range(50):
            await asyncio.sleep(0)
            yield photo(i)
        raise RuntimeError("the source broke")

    async def main() -> list[int]:
        seen: list[int] = []

        async def read(client: AsyncNimaClient) -> None:
            async for score in client.score_iter(images(), ordered=ordered):
                seen.append(score.index)

        async with AsyncNimaClient(slow.url) as client:
            with pytest.raises(RuntimeError, match="the source broke"):
                await read(client)
            with pytest.raises(RuntimeError, match="the source broke"):
                await client.score(images())
        return seen

    assert sorted(asyncio.run(main())) == list(range(50))
