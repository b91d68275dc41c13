"""How calls end: every image has a result, whatever was under way, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kserve_server import KServeServer

from nima_client import (
    NO_RETRIES,
    AsyncNimaClient,
    ConnectError,
    DeadlineExceeded,
    ImageFailure,
    ImageScore,
    NimaClient,
    RequestCancelled,
    ScoringError,
    _async_calls,
    _calls,
)
from nima_client.testing import FakeTransport, reply

Make = Callable[..., Any]


@pytest.fixture
def slow_preparation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making an image ready takes half a second."""
    for module in (_async_calls, _calls):
        real = module.prepare

        def slow(*args: Any, real: Any = real) -> Any:
            time.sleep(0.5)
            return real(*args)

        monkeypatch.setattr(module, "prepare", slow)


def test_an_image_being_prepared_at_the_deadline_has_a_result(
    caller: Make, photo: Make, tmp_path: Path, slow_preparation: None
) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo(0))
    client = caller(transport=FakeTransport())
    client.model_info()
    with pytest.raises(DeadlineExceeded):
        client.score_one(path, timeout=0.1)
    with pytest.raises(ScoringError) as caught:
        client.score([path], timeout=0.1)
    assert [failure.index for failure in caught.value.failures] == [0]
    results = client.score([path, path, b"no photo"], timeout=0.1, on_error="return")
    assert [(r.index, r.code, r.source) for r in results] == [
        (0, "DEADLINE", str(path)), (1, "DEADLINE", str(path)), (2, "DEADLINE", None),
    ]  # fmt: skip


def test_an_image_being_prepared_when_the_server_is_gone_has_a_result(
    caller: Make, photo: Make, tmp_path: Path, slow_preparation: None
) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo(0))

    def handler(request: Any) -> Any:
        raise ConnectError("gone")

    client = caller(transport=FakeTransport(handler), retry=NO_RETRIES, request_size=1)
    results = client.score([path] * 4, on_error="return")
    assert [(r.index, r.code) for r in results] == [(i, "UNREACHABLE") for i in range(4)]


@pytest.mark.timeout(30)
def test_many_bad_images_behind_a_good_one_do_not_stop_a_call(caller: Make, photo: Make) -> None:
    client = caller(transport=FakeTransport(), request_size=4)
    results = client.score([photo(0), *[b"no photo"] * 3000, photo(1)], on_error="return")
    assert [r.index for r in results] == list(range(3002))
    assert [r.index for r in results if isinstance(r, ImageScore)] == [0, 3001]


class Waiting:
    """An async iterable of so many photos at once; the next one is long in coming."""

    def __init__(self, photos: list[bytes], *, wait: float = 30.0, end: int = 10**9) -> None:
        self.photos = photos
        self.wait = wait
        self.end = end
        self.asked = 0

    def __aiter__(self) -> Waiting:
        return self

    async def __anext__(self) -> bytes:
        number = self.asked
        self.asked += 1
        if number >= self.end:
            raise StopAsyncIteration
        if number >= len(self.photos):
            await asyncio.sleep(self.wait)
        return self.photos[number % len(self.photos)]


@pytest.mark.parametrize("generator", [False, True])
def test_a_deadline_while_an_async_iterable_is_waited_for_is_told(
    photo: Make, generator: bool
) -> None:
    async def generated(source: Waiting) -> AsyncIterator[bytes]:
        async for image in source:
            yield image

    async def main() -> None:
        async with AsyncNimaClient(transport=FakeTransport()) as client:
            source = Waiting([photo(i) for i in range(3)])
            images = generated(source) if generator else source
            start = time.monotonic()
            results = await client.score(images, timeout=1.5, on_error="return")
            assert time.monotonic() - start < 10.0
            assert [r.index for r in results] == [0, 1, 2, 3]
            assert all(isinstance(r, ImageScore) for r in results[:3])
            assert isinstance(results[3], ImageFailure)
            assert results[3].code == "DEADLINE"
            assert source.asked == 4
            with pytest.raises(ScoringError) as caught:
                await client.score(Waiting([photo(0)]), timeout=1.5)
            assert sorted(caught.value.scores) == [0]
            assert isinstance(caught.value.__cause__, DeadlineExceeded)

    asyncio.run(main())


def test_a_deadline_while_an_ordinary_iterable_waits_loses_no_result(photo: Make) -> None:
    scores: list[ImageScore] = []
    asked: list[int] = []

    def images() -> Iterator[bytes]:
        yield photo(0)
        yield photo(1)
        time.sleep(1.2)
        for number in range(2, 9):
            asked.append(number)
            yield photo(number)

    with NimaClient(transport=FakeTransport()) as client, pytest.raises(DeadlineExceeded):
        scores.extend(client.score_iter(images(), timeout=1.0))
    assert [score.index for score in scores] == [0, 1]
    assert asked == [2]


def test_an_async_iterable_is_read_to_its_end_as_far_as_nothing_is_waited_for(
    photo: Make,
) -> None:
    async def never(request: Any) -> Any:
        await asyncio.sleep(30)
        return reply(request)

    async def main() -> None:
        options: dict[str, Any] = {"request_size": 1, "max_in_flight": 2}
        async with AsyncNimaClient(transport=FakeTransport(never), **options) as client:
            # The window is full long before the end: most images are read after the deadline.
            many = Waiting([photo(0)] * 50, end=50)
            results = await client.score(many, timeout=0.2, on_error="return")
            assert [r.index for r in results] == list(range(50))
            start = time.monotonic()
            waits = Waiting([photo(0)] * 20)
            results = await client.score(waits, timeout=0.2, on_error="return")
            assert time.monotonic() - start < 10.0
            # One more for what did not come.
            assert [r.index for r in results] == list(range(21))
            assert {r.code for r in results if isinstance(r, ImageFailure)} == {"DEADLINE"}

    asyncio.run(main())


def test_an_error_of_an_async_iterable_comes_through_at_the_end_too(photo: Make) -> None:
    async def never(request: Any) -> Any:
        await asyncio.sleep(30)
        return reply(request)

    async def images() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield photo(0)
        raise RuntimeError("the source broke")

    async def main() -> None:
        options: dict[str, Any] = {"request_size": 1, "max_in_flight": 2}
        async with AsyncNimaClient(transport=FakeTransport(never), **options) as client:
            with pytest.raises(RuntimeError, match="the source broke"):
                await client.score(images(), timeout=0.2)

    asyncio.run(main())


# -- closing --------------------------------------------------------------------------------------


@pytest.fixture
def closing(server: KServeServer) -> Make:
    """``closing(call)``: the error of a call whose asyncio client is closed meanwhile."""

    def run(call: Callable[[AsyncNimaClient], Any], *, ready: bool = True) -> BaseException:
        async def main() -> BaseException:
            client = AsyncNimaClient(server.url)
            if ready:
                await client.model_info()
            task = asyncio.ensure_future(call(client))
            await asyncio.sleep(0.3)
            start = time.monotonic()
            await client.close()
            (error,) = await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 20.0)
            assert time.monotonic() - start < 10.0
            assert isinstance(error, BaseException)
            return error

        return asyncio.run(main())

    return run


@pytest.mark.timeout(60)
def test_an_asyncio_client_can_be_closed_while_calls_wait(
    server: KServeServer, photo: Make, closing: Make
) -> None:
    server.delay = 60.0
    assert isinstance(closing(lambda client: client.score_one(photo(0))), RequestCancelled)
    error = closing(lambda client: client.score([photo(i) for i in range(40)]))
    assert isinstance(error, ScoringError)
    assert [failure.index for failure in error.failures] == list(range(40))
    assert {failure.code for failure in error.failures} == {"CANCELLED"}

    async def stream(client: AsyncNimaClient) -> None:
        async for _ in client.score_iter([photo(0)]):
            pass

    assert isinstance(closing(stream), RequestCancelled)


@pytest.mark.timeout(60)
def test_an_asyncio_client_can_be_closed_while_the_first_contact_waits(
    server: KServeServer, photo: Make, closing: Make
) -> None:
    server.describe_delay = 60.0
    error = closing(lambda client: client.score_one(photo(0)), ready=False)
    assert isinstance(error, RequestCancelled)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.skipif(sys.version_info < (3, 11), reason="tasks do not say that they were cancelled")
def test_a_cancelled_task_is_cancelled_although_its_client_is_closed_too(
    server: KServeServer, photo: Make, ready: bool
) -> None:
    server.delay = server.describe_delay = 60.0

    async def main() -> None:
        client = AsyncNimaClient(server.url)
        if ready:
            server.describe_delay = 0.0
            await client.model_info()
        task = asyncio.ensure_future(client.score_one(photo(0)))
        await asyncio.sleep(0.3)
        task.cancel()
        await client.close()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 20.0)

    asyncio.run(main())


@pytest.mark.timeout(60)
def test_a_request_that_is_cancelled_elsewhere_ends_its_call(photo: Make) -> None:
    async def handler(request: Any) -> Any:
        raise asyncio.CancelledError

    async def main() -> None:
        async with AsyncNimaClient(transport=FakeTransport(handler)) as client:
            with pytest.raises(RequestCancelled):
                await asyncio.wait_for(client.score_one(photo(0)), 20.0)

    asyncio.run(main())


def test_a_client_can_be_closed_between_the_questions_of_the_first_contact(
    caller: Make, server: KServeServer, photo: Make
) -> None:
    client = caller(server.url)
    client.model_info()
    transport = client.client._transport
    stub = transport._calls[0]
    ask = stub.ModelConfig

    def close_and_ask(*args: Any, **options: Any) -> Any:
        transport._closed = True
        # grpc.aio's own close() would have to be awaited.
        channel = transport._channel
        (channel if client.kind == "sync" else channel._channel).close()
        return ask(*args, **options)

    stub.ModelConfig = close_and_ask
    with pytest.raises(RequestCancelled, match="closed"):
        client.model_info()


@pytest.mark.parametrize("closes", [False, True])
def test_streams_left_open_at_the_end_of_an_event_loop_end_quietly(
    server: KServeServer, photo: Make, caplog: pytest.LogCaptureFixture, closes: bool
) -> None:
    async def main(streams: list[Any]) -> None:
        client = AsyncNimaClient(server.url, request_size=1, max_in_flight=3)
        for _ in range(3):
            streams.append(client.score_iter([photo(i) for i in range(20)]))
            await anext(streams[-1])
        if closes:
            await client.close()

    async def one_call() -> None:
        async with AsyncNimaClient(server.url) as client:
            await client.score_one(photo(0))

    # gRPC has one queue for all loops of a process. What earlier tests left in it is told once: at
    # each call a part of it, and some of it later.
    for _ in range(20):
        caplog.clear()
        asyncio.run(one_call())
        if not caplog.records:
            break
    server.delay = 0.05
    for _ in range(2):
        caplog.clear()
        for _ in range(3):  # asyncio closes them in no certain order
            asyncio.run(main([]))
            kept: list[Any] = []
            asyncio.run(main(kept))
        if not caplog.records:
            break
    assert caplog.records == []


def test_what_was_cancelled_is_over_when_its_event_loop_closes(
    server: KServeServer, photo: Make, caplog: pytest.LogCaptureFixture
) -> None:
    async def cancelled(client: AsyncNimaClient) -> None:
        async with client:
            await client.model_info()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(client.score([photo(i) for i in range(80)]), 0.004)

    async def left(client: AsyncNimaClient) -> None:
        async for _ in client.score_iter([photo(i) for i in range(8)]):
            break
        await client.close()

    # Its channel keeps what gRPC has to tell from one event loop to the next.
    other = AsyncNimaClient(server.url)
    asyncio.run(other.model_info())
    for _ in range(60):
        for way in (cancelled, left):
            asyncio.run(way(AsyncNimaClient(server.url, request_size=1)))
    assert caplog.records == []
    asyncio.run(other.close())
