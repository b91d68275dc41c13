"""The client for threads."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal, overload

from nima_client._attempt import Attempt
from nima_client._base import (
    BaseClient,
    OnError,
    check_images,
    check_on_error,
    one_result,
    raise_failures,
    scores_of,
    trace_headers,
)
from nima_client._contract_check import check_contract
from nima_client._images import ImageInput, exact_count, prepare, source_of
from nima_client._plan import Plan
from nima_client._transport import InferReply, InferRequest, PendingReply, Transport
from nima_client.errors import ImageRejectedError, RequestError
from nima_client.results import ImageFailure, ImageScore, ModelInfo

if TYPE_CHECKING:
    from types import TracebackType

_Answer = tuple[Attempt, PendingReply]


class NimaClient(BaseClient):
    """Scores images on a NIMA server. Options: see :class:`~nima_client._base.BaseClient`.

    The first call opens the connection and checks the server's contract. One client may be used by
    many threads at once; each call has its own window of requests. After ``os.fork`` a child may
    use the client of its parent, provided that no other thread was inside a call at that moment.

    Example:
        >>> with NimaClient("127.0.0.1:8001") as client:
        ...     for score in client.score(["beach.jpg", "blurred.jpg"]):
        ...         print(score.mean, score.std, score.percentile)
    """

    _opened: Transport | None = None

    # -- scoring -------------------------------------------------------------------------------

    @overload
    def score(
        self,
        images: Iterable[ImageInput],
        *,
        on_error: Literal["raise"] = "raise",
        timeout: float | None = None,
    ) -> list[ImageScore]: ...

    @overload
    def score(
        self,
        images: Iterable[ImageInput],
        *,
        on_error: Literal["return"],
        timeout: float | None = None,
    ) -> list[ImageScore | ImageFailure]: ...

    def score(
        self,
        images: Iterable[ImageInput],
        *,
        on_error: OnError = "raise",
        timeout: float | None = None,
    ) -> list[ImageScore] | list[ImageScore | ImageFailure]:
        """Score images.

        Args:
            images: paths, bytes of image files, binary file objects, PIL images or uint8 arrays
                (:data:`~nima_client.ImageInput`), mixed as you like.
            on_error: ``"raise"`` raises when any image has no score; ``"return"`` puts an
                :class:`ImageFailure` in its place.
            timeout: seconds that the whole call may take; also sent to the server.

        Returns:
            One result for each image, in input order.

        Raises:
            ScoringError: (``on_error="raise"``) carries the failures by index and the good scores.
            TransportError: no server could be reached, before any image was sent.
            ContractError: that server is not NIMA, or speaks another contract.
            TypeError: an input that is no image.
        """
        check_on_error(on_error)
        results = list(self._run(images, timeout, ordered=True, drain=True))
        return results if on_error == "return" else raise_failures(results)

    def score_one(self, image: ImageInput, *, timeout: float | None = None) -> ImageScore:
        """Score one image.

        Args:
            image: as for :meth:`score`.
            timeout: seconds that the call may take.

        Raises:
            ImageRejectedError: this image cannot be scored.
            RequestError: any other reason, as itself.
        """
        return one_result(list(self._run([image], timeout, ordered=True, drain=True)))

    @overload
    def score_iter(
        self,
        images: Iterable[ImageInput],
        *,
        ordered: bool = True,
        on_error: Literal["raise"] = "raise",
        timeout: float | None = None,
    ) -> Iterator[ImageScore]: ...

    @overload
    def score_iter(
        self,
        images: Iterable[ImageInput],
        *,
        ordered: bool = True,
        on_error: Literal["return"],
        timeout: float | None = None,
    ) -> Iterator[ImageScore | ImageFailure]: ...

    def score_iter(
        self,
        images: Iterable[ImageInput],
        *,
        ordered: bool = True,
        on_error: OnError = "raise",
        timeout: float | None = None,
    ) -> Iterator[ImageScore] | Iterator[ImageScore | ImageFailure]:
        """Score an endless stream in constant memory.

        Images are taken from the iterator only as the window of requests has room. Leaving the loop
        cancels what is under way.

        Args:
            images: any iterable; it is read in the calling thread.
            ordered: results in input order, or as they complete (``index`` tells which is which).
            on_error: ``"raise"`` raises the reason of the first image without a score;
                ``"return"`` yields an :class:`ImageFailure` for it.
            timeout: seconds that the whole stream may take.

        Yields:
            One result for each image.

        Raises:
            RequestError: an image failed (``on_error="raise"``); or, in both modes and after the
                results that were reached, what makes going on pointless (the server is gone).
        """
        check_on_error(on_error)
        check_images(images)
        return self._stream(images, timeout, ordered, on_error)

    def model_info(self) -> ModelInfo:
        """What the server serves: versions, checkpoint, preprocessing, reference quantiles.

        Asks the server each time.

        Raises:
            TransportError: no server could be reached.
            ContractError: it is not NIMA, or speaks another contract.
        """
        return self._contact(None)

    def close(self) -> None:
        """Close the connection; calls under way in other threads end with an error."""
        if self._opened is not None:
            self._opened.close()

    def __enter__(self) -> NimaClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- inside --------------------------------------------------------------------------------

    def _stream(
        self, images: Iterable[ImageInput], timeout: float | None, ordered: bool, on_error: OnError
    ) -> Iterator[ImageScore]:
        # Typed as the narrower of score_iter's two overloads.
        for result in self._run(images, timeout, ordered=ordered, drain=False):
            if isinstance(result, ImageFailure) and on_error == "raise":
                assert result.error is not None
                raise result.error
            yield result  # type: ignore[misc]

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
        return self._remember(check_contract(description))

    def _contact(self, deadline: float | None) -> ModelInfo:
        contact = self._first_contact(deadline)
        while True:
            try:
                return self._describe(self._model_version, contact.time_left())
            except RequestError as error:
                time.sleep(contact.wait_after(error))

    def _current(self, deadline: float | None) -> ModelInfo:
        known = self._known
        return next(iter(known.values())) if known else self._contact(deadline)

    def _run(
        self, images: Iterable[ImageInput], timeout: float | None, *, ordered: bool, drain: bool
    ) -> Iterator[ImageScore | ImageFailure]:
        """Drive one call.

        When it cannot go on, ``drain`` answers for the images not yet read as well (a list); else
        the reason is raised (a stream that may have no end).
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
                yield from plan.take()
                if plan.finished:
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
        try:
            plan.add(index, prepare(image, self._prepare_options, index))
        except ImageRejectedError as error:
            plan.add_failure(index, error, source_of(image))
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
        info = self._known.get(reply.model_version)
        if info is None:
            info = self._describe(reply.model_version, self._time_for_facts(plan))
        plan.succeeded(attempt, scores_of(attempt, reply, info), time.monotonic())

    @staticmethod
    def _cancel(under_way: dict[Attempt, PendingReply]) -> None:
        for pending in under_way.values():
            pending.cancel()
        under_way.clear()
