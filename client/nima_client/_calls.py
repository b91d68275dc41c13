"""How the client for threads drives a call: the plan decides, this sends, waits and reads."""

from __future__ import annotations

import queue
import time
from collections.abc import Generator, Iterable, Iterator

from nima_client._arguments import OnError, check_images, trace_headers
from nima_client._attempt import Attempt
from nima_client._base import BaseClient
from nima_client._contract_check import check_contract
from nima_client._images import ImageInput, exact_count, prepare, source_of
from nima_client._outcome import each, scores_of
from nima_client._plan import Plan
from nima_client._transport import InferReply, InferRequest, PendingReply, Transport
from nima_client.errors import ImageRejectedError, RequestError
from nima_client.results import ImageFailure, ImageScore, ModelInfo

_Answer = tuple[Attempt, PendingReply]


class ThreadCalls(BaseClient):
    """The inside of :class:`~nima_client.NimaClient`."""

    _opened: Transport | None = None

    @property
    def _transport(self) -> Transport:
        if self._opened is None:
            with self._lock:
                if self._opened is None:
                    self._opened = self._given_transport or self._default_transport()
        return self._opened

    def _default_transport(self) -> Transport:
        from nima_client._grpc import GrpcTransport

        return GrpcTransport(self._connection)

    def _describe(self, version: str, timeout: float) -> ModelInfo:
        description = self._transport.describe(self._model_name, version, timeout)
        return self._facts.remember(check_contract(description))

    def _contact(self, deadline: float | None) -> ModelInfo:
        contact = self._first_contact(deadline)
        while True:
            try:
                return self._describe(self._model_version, contact.time_left())
            except RequestError as error:
                time.sleep(contact.wait_after(error))

    def _current(self, deadline: float | None) -> ModelInfo:
        return self._facts.any() or self._contact(deadline)

    def _run(
        self,
        images: Iterable[ImageInput],
        timeout: float | None,
        *,
        ordered: bool = True,
        drain: bool = True,
        on_error: OnError = "return",
    ) -> Generator[ImageScore | ImageFailure, None, None]:
        """Drive one call.

        When it cannot go on, ``drain`` answers for the images not yet read as well (a list); else
        the reason is raised (a stream that may have no end). What the iterable raises comes behind
        the results of all that it gave before; from a list at once, which could hand over none.

        Streams are this very generator: closed, it cancels what is under way before ``close()``
        returns, and what a signal handler raises meanwhile is not lost.
        """
        check_images(images)
        deadline = self._deadline(timeout)
        source = enumerate(images)
        total = exact_count(images)
        info = self._current(deadline)
        plan = self._plan(info, deadline, ordered=ordered, images=images)
        trace = trace_headers()
        answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        under_way: dict[Attempt, PendingReply] = {}
        try:
            while True:
                while not answers.empty():
                    self._answer(plan, under_way, *answers.get())
                yield from each(plan.take(), on_error)
                if plan.finished or (drain and plan.input_error is not None):
                    break
                now = time.monotonic()
                if plan.expire(now):
                    self._cancel(under_way)
                    continue
                attempt = plan.next_request(now)
                if attempt is not None:
                    request = self._request(attempt, plan, info, trace)
                    self._send(plan, attempt, request, under_way, answers)
                elif plan.wants_input:
                    self._feed(plan, source, total)
                else:
                    wake = plan.wake_at()
                    wait = None if wake is None else max(0.0, wake - time.monotonic())
                    try:
                        self._answer(plan, under_way, *answers.get(timeout=wait))
                    except queue.Empty:
                        continue
        finally:
            self._cancel(under_way)
        if plan.input_error is not None:
            raise plan.input_error
        if plan.broken is not None:
            if not drain:
                raise plan.broken
            for index, image in source:
                yield ImageFailure.from_error(index, plan.broken, source_of(image))

    def _feed(
        self, plan: Plan, source: Iterator[tuple[int, ImageInput]], total: int | None
    ) -> None:
        try:
            index, image = next(source)
        except StopIteration:
            plan.end_of_input()
            return
        except Exception as error:
            plan.end_of_input(error)
            return
        try:
            plan.add(index, prepare(image, self._prepare_options, index))
        except ImageRejectedError as error:
            plan.add_failure(index, error, source_of(image))
        except Exception as error:  # what is no image, say
            plan.end_of_input(error)
            return
        if index + 1 == total:
            # Known now, the last request may be sent the short way.
            plan.end_of_input()

    def _send(
        self,
        plan: Plan,
        attempt: Attempt,
        request: InferRequest,
        under_way: dict[Attempt, PendingReply],
        answers: queue.SimpleQueue[_Answer],
    ) -> None:
        try:
            if plan.alone:
                # Nothing else to do meanwhile: a blocking call saves two thread switches.
                self._reply(plan, attempt, self._transport.infer(request))
                return
            pending = self._transport.submit(request)
        except RequestError as error:
            self._failed(plan, attempt, error)
            return
        under_way[attempt] = pending
        pending.add_done_callback(lambda done: answers.put((attempt, done)))

    def _answer(
        self,
        plan: Plan,
        under_way: dict[Attempt, PendingReply],
        attempt: Attempt,
        pending: PendingReply,
    ) -> None:
        under_way.pop(attempt, None)
        try:
            self._reply(plan, attempt, pending.result())
        except RequestError as error:
            self._failed(plan, attempt, error)

    def _reply(self, plan: Plan, attempt: Attempt, reply: InferReply) -> None:
        info = self._facts.of(reply.model_version)
        if info is None:
            info = self._describe(reply.model_version, self._time_for_facts(plan))
        plan.succeeded(attempt, scores_of(attempt, reply, info), time.monotonic())

    @staticmethod
    def _cancel(under_way: dict[Attempt, PendingReply]) -> None:
        for pending in under_way.values():
            pending.cancel()
        under_way.clear()
