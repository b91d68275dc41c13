"""How the client for asyncio drives a call; the twin of :mod:`nima_client._calls`."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator

from nima_client._arguments import OnError, check_images, trace_headers
from nima_client._attempt import Attempt
from nima_client._base import BaseClient
from nima_client._contract_check import check_contract
from nima_client._images import prepare, source_of
from nima_client._outcome import each, scores_of
from nima_client._plan import Plan
from nima_client._source import Images, Source
from nima_client._transport import AsyncTransport, InferReply
from nima_client.errors import ImageRejectedError, RequestCancelled, RequestError
from nima_client.results import ImageFailure, ImageScore, ModelInfo


class AsyncCalls(BaseClient):
    """The inside of :class:`~nima_client.AsyncNimaClient`."""

    _opened: AsyncTransport | None = None

    @property
    def _transport(self) -> AsyncTransport:
        if self._opened is None:
            self._opened = self._given_transport or self._default_transport()
        return self._opened

    def _default_transport(self) -> AsyncTransport:
        from nima_client._grpc_aio import AsyncGrpcTransport

        return AsyncGrpcTransport(self._connection)

    async def _describe(self, version: str, timeout: float) -> ModelInfo:
        description = await self._transport.describe_async(self._model_name, version, timeout)
        return self._facts.remember(check_contract(description))

    async def _contact(self, deadline: float | None) -> ModelInfo:
        contact = self._first_contact(deadline)
        while True:
            try:
                return await self._describe(self._model_version, contact.time_left())
            except RequestError as error:
                await asyncio.sleep(contact.wait_after(error))

    async def _current(self, deadline: float | None) -> ModelInfo:
        return self._facts.any() or await self._contact(deadline)

    async def _run(
        self,
        images: Images,
        timeout: float | None,
        *,
        ordered: bool = True,
        drain: bool = True,
        on_error: OnError = "return",
    ) -> AsyncGenerator[ImageScore | ImageFailure, None]:
        """Drive one call; the twin of ``ThreadCalls._run``.

        Streams are this very generator: an event loop that shuts down closes all generators at
        once, and could not close one that another is closing.
        """
        check_images(images)
        deadline = self._deadline(timeout)
        source = Source(images)
        info = await self._current(deadline)
        plan = self._plan(info, deadline, ordered=ordered, images=images)
        trace = trace_headers()
        under_way: dict[asyncio.Task[InferReply], Attempt] = {}
        feeder: asyncio.Task[None] | None = None
        # Not asyncio.wait, which looks at every request under way each time one of them ends.
        answered: deque[asyncio.Task[InferReply]] = deque()
        news = asyncio.Event()

        def done(task: asyncio.Task[InferReply]) -> None:
            answered.append(task)
            news.set()

        try:
            while True:
                news.clear()
                while answered:
                    task = answered.popleft()
                    await self._answer(plan, under_way.pop(task), task)
                if feeder is not None and feeder.done():
                    feeder.result()
                    feeder = None
                for result in each(plan.take(), on_error):
                    yield result
                if plan.finished or (drain and plan.input_error is not None):
                    break
                now = time.monotonic()
                if plan.expire(now):
                    for task in under_way:
                        task.cancel()
                    continue
                attempt = plan.next_request(now)
                if attempt is not None:
                    request = self._request(attempt, plan, info, trace)
                    task = asyncio.create_task(self._transport.infer_async(request))
                    task.add_done_callback(done)
                    under_way[task] = attempt
                    continue
                if plan.wants_input and feeder is None:
                    if source.add_instant(plan, self._prepare_options):
                        continue
                    feeder = asyncio.create_task(self._feed(plan, source))
                    feeder.add_done_callback(lambda _: news.set())
                await _wait(news, plan.wake_at())
        finally:
            left = [*under_way, *([feeder] if feeder else [])]
            for unfinished in left:
                unfinished.cancel()
            await asyncio.gather(*left, return_exceptions=True)
        if plan.input_error is not None:
            raise plan.input_error
        if plan.broken is not None:
            if not drain:
                raise plan.broken
            async for index, image in source.rest():
                yield ImageFailure.from_error(index, plan.broken, source_of(image))

    async def _feed(self, plan: Plan, source: Source) -> None:
        try:
            index, image = await source.take()
        except StopAsyncIteration:
            plan.end_of_input()
            return
        except Exception as error:
            plan.end_of_input(error)
            return
        if plan.broken is not None:
            return  # the call has ended, and answers for what was taken itself
        try:
            plan.add(index, await asyncio.to_thread(prepare, image, self._prepare_options, index))
        except ImageRejectedError as error:
            plan.add_failure(index, error, source_of(image))
        except Exception as error:  # what is no image, say
            plan.end_of_input(error)
            return
        source.added(plan)

    async def _answer(self, plan: Plan, attempt: Attempt, task: asyncio.Task[InferReply]) -> None:
        try:
            reply = task.result()
            info = self._facts.of(reply.model_version)
            if info is None:
                info = await self._describe(reply.model_version, self._time_for_facts(plan))
            plan.succeeded(attempt, scores_of(attempt, reply, info), time.monotonic())
        except RequestError as error:
            self._failed(plan, attempt, error)
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            # By us, at the deadline, its images have been answered for; else the call cannot go on.
            gone = RequestCancelled("the request was cancelled", request_id=attempt.wire_id)
            self._failed(plan, attempt, gone)


async def _wait(news: asyncio.Event, until: float | None) -> None:
    """Wait for the event, or until a monotonic time."""
    if until is None:
        await news.wait()
        return
    delay = max(0.0, until - time.monotonic())
    timer = asyncio.get_running_loop().call_later(delay, news.set)
    try:
        await news.wait()
    finally:
        timer.cancel()
