"""The logic of one ``score`` call, without any input or output.

A plan decides which images go into which request, how many requests are under way, what is sent
again and when, and in which order results come out. It never sleeps, sends or reads a clock: a
driver (for threads in ``_client``, for asyncio in ``_async_client``) does, and tells it the time.
So both clients have the same semantics, and the tests drive a plan through any order of events.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque

from nima_client import _defaults, errors
from nima_client._attempt import OUT_OF_TIME, Attempt, Item
from nima_client._images import Prepared, rejected
from nima_client._outlet import Outlet, Result, forget_frames
from nima_client._patience import Patience
from nima_client._retry import RetryPolicy
from nima_client._transport import RejectedImages
from nima_client.errors import RequestError, Stage
from nima_client.results import ImageFailure, ImageScore


class Plan:
    """State of one call.

    The driver loops over: :meth:`take` what is ready, stop when :attr:`finished`; :meth:`expire`;
    send what :meth:`next_request` gives; feed images while :attr:`wants_input`; else wait for an
    answer, or until :meth:`wake_at`.

    Args:
        request_size: images in a request.
        max_in_flight: requests under way at most.
        retry: retry policy.
        deadline: time at which the call ends; None for never.
        ordered: results come in input order, else as they complete.
        call_id: prefix of the request ids.
        rng: source of jitter.
        reorder_window: results held back at most while an earlier one is outstanding.
        request_bytes: a request is closed early when it grows beyond this, so that many huge photos
            stay far below gRPC's 2 GiB for one message.
        eager: send what has been gathered, full or not, while fewer requests are under way.
    """

    def __init__(
        self,
        *,
        request_size: int,
        max_in_flight: int,
        retry: RetryPolicy,
        deadline: float | None = None,
        ordered: bool = True,
        call_id: str = "",
        rng: random.Random | None = None,
        reorder_window: int = _defaults.REORDER_WINDOW,
        request_bytes: int = _defaults.MAX_BYTES,
        eager: int = 0,
    ) -> None:
        self._request_size = request_size
        self._max_in_flight = max_in_flight
        self._deadline = deadline
        self._call_id = call_id
        self._patience = Patience(retry, deadline, rng or random.Random())
        self._outlet = Outlet(ordered=ordered, window=max(reorder_window, request_size))
        self._request_bytes = request_bytes
        self._eager = eager
        self._gathering: list[Item] = []
        self._gathered_bytes = 0
        self._ready: deque[Attempt] = deque()
        self._waiting: list[tuple[float, int, Attempt]] = []
        self._in_flight: set[Attempt] = set()
        self._payloads = 0
        self._payload_bytes = 0
        self._ended = False
        self._input_error: Exception | None = None
        self._broken: RequestError | None = None
        self._sequence = itertools.count(1)

    # -- images in -----------------------------------------------------------------------------

    @property
    def wants_input(self) -> bool:
        """Whether there is room for one more image: in the request behind those under way."""
        requests = len(self._in_flight) + len(self._ready) + len(self._waiting)
        return (
            requests <= self._max_in_flight
            # Not by request_bytes: large photos, each a request of its own, would wait in line.
            and self._payload_bytes < (self._max_in_flight + 1) * _defaults.MAX_BYTES
            and not self._ended
            and self._broken is None
            and not self._outlet.full
        )

    @property
    def broken(self) -> RequestError | None:
        """The error after which nothing more of this call can be scored, if there was one."""
        return self._broken

    @property
    def input_error(self) -> Exception | None:
        """What ended the input before its time, to be raised when all accepted has come out."""
        return self._input_error

    def add(self, index: int, prepared: Prepared) -> None:
        """Accept one image. Indices count from 0 without gaps."""
        if self._broken is not None:
            self._give_up(Item(index, prepared), self._broken)
            return
        self._payloads += 1
        self._payload_bytes += len(prepared.data)
        self._gathering.append(Item(index, prepared))
        self._gathered_bytes += len(prepared.data)
        full = len(self._gathering) >= self._request_size
        if full or self._gathered_bytes >= self._request_bytes:
            self.flush()

    def add_failure(self, index: int, error: RequestError, source: str | None = None) -> None:
        """Accept one image that failed before it could be sent."""
        forget_frames(error)
        self._outlet.put(ImageFailure.from_error(index, error, source))

    def flush(self) -> None:
        """Send what has been gathered, even if the request is not full."""
        if self._gathering:
            self._ready.append(self._attempt(tuple(self._gathering)))
            self._gathering = []
            self._gathered_bytes = 0

    def end_of_input(self, error: Exception | None = None) -> None:
        """No more images will come: there are none, or reading the next one raised an error."""
        self._ended = True
        self._input_error = error
        self.flush()

    # -- requests out --------------------------------------------------------------------------

    def next_request(self, now: float) -> Attempt | None:
        """The request to send now, or None."""
        if len(self._in_flight) >= self._max_in_flight:
            return None
        if not (self._ready or self._waiting):
            # Behind what waits for company here, images that failed may have filled the window.
            stuck = not self._in_flight and self._outlet.full
            if stuck or len(self._in_flight) < self._eager:
                self.flush()
        if self._waiting and self._waiting[0][0] <= now:
            attempt = heapq.heappop(self._waiting)[2]
        elif self._ready:
            attempt = self._ready.popleft()
        else:
            return None
        if attempt.first_sent is None:
            attempt.first_sent = now
        self._in_flight.add(attempt)
        return attempt

    @property
    def alone(self) -> bool:
        """Whether the one request under way is all that is left: a driver may block on it."""
        return self._ended and len(self._in_flight) == 1 and not self._ready and not self._waiting

    def timeout_of(self, request_timeout: float | None, now: float) -> float | None:
        """Seconds that a request sent now may take; None for any."""
        left = None if self._deadline is None else max(0.0, self._deadline - now)
        known = [t for t in (request_timeout, left) if t is not None]
        return min(known) if known else None

    def wake_at(self) -> float | None:
        """When the driver must look again even if no answer came; None for never."""
        times = [] if self._deadline is None else [self._deadline]
        if self._waiting and len(self._in_flight) < self._max_in_flight:
            times.append(self._waiting[0][0])
        return min(times) if times else None

    # -- answers in ----------------------------------------------------------------------------

    def succeeded(self, attempt: Attempt, scores: list[ImageScore], now: float) -> None:
        """The answer to a request; one score for each of its items. Late answers are dropped."""
        if attempt not in self._in_flight:
            return
        self._in_flight.discard(attempt)
        self._patience.alive(now)
        for item in attempt.items:
            self._let_go(item)
        for score in scores:
            self._outlet.put(score)

    def failed(self, attempt: Attempt, error: RequestError, now: float) -> None:
        """A request failed: refuse its bad images, send it again, or give its images up."""
        forget_frames(error)
        if attempt not in self._in_flight:
            return
        self._in_flight.discard(attempt)
        if isinstance(error, RejectedImages):
            self._patience.alive(now)
            self._refuse(attempt, error)
        elif (
            error.retryable
            and (due := self._patience.retry_at(attempt, error, now)) is not None
            and self._broken is None
        ):
            attempt.number += 1
            attempt.last_error = error
            heapq.heappush(self._waiting, (due, next(self._sequence), attempt))
        elif error.stage is Stage.MODEL and not error.retryable and self._split(attempt):
            self._patience.alive(now)
        else:
            if isinstance(error, errors.DeadlineExceeded) and attempt.last_error is not None:
                error = attempt.late()
            for item in attempt.items:
                self._let_go(item)
                self._give_up(item, error)
            if self._patience.is_over(attempt, error, now):
                self._break(error)

    def expire(self, now: float) -> bool:
        """End the call if its deadline has passed; whether it did just now.

        The driver then cancels every request under way.
        """
        if self._deadline is None or now < self._deadline or self._broken is not None:
            return False
        late = [*self._in_flight, *(attempt for _, _, attempt in self._waiting)]
        self._in_flight.clear()
        self._waiting.clear()
        for attempt in late:
            error = attempt.late()
            for item in attempt.items:
                self._let_go(item)
                self._give_up(item, error)
        self._break(errors.DeadlineExceeded(OUT_OF_TIME))
        return True

    # -- results out ---------------------------------------------------------------------------

    def take(self) -> list[Result]:
        """Results that are ready to be handed over, in the promised order."""
        return self._outlet.take()

    @property
    def finished(self) -> bool:
        """Whether every accepted image has come out and no more will come in."""
        ended = self._ended or self._broken is not None
        return ended and not self._payloads and self._outlet.empty

    # -- inside --------------------------------------------------------------------------------

    def _attempt(self, items: tuple[Item, ...], *, resend: bool = False) -> Attempt:
        return Attempt(items, f"{self._call_id}-{next(self._sequence)}", resend=resend)

    def _refuse(self, attempt: Attempt, error: RejectedImages) -> None:
        bad = {r.index: r for r in error.rejections if 0 <= r.index < len(attempt.items)}
        good = []
        for row, item in enumerate(attempt.items):
            if row not in bad:
                good.append(item)
                continue
            source = item.prepared.source
            why = rejected(
                bad[row].code.value, bad[row].detail, item.index, source, error.request_id
            )
            self._let_go(item)
            self._outlet.put(ImageFailure.from_error(item.index, why, source))
        if not good:
            return
        if attempt.resend or not bad:
            confused = errors.ModelError(
                "the server refused a request without naming what is wrong with these images",
                request_id=error.request_id,
                retryable=False,
            )
            for item in good:
                self._let_go(item)
                self._give_up(item, confused)
        else:
            # To the front: their results may be holding others back.
            self._ready.appendleft(self._attempt(tuple(good), resend=True))

    def _split(self, attempt: Attempt) -> bool:
        """Send each image of a refused request alone: the server did not say which one is bad."""
        if len(attempt.items) < 2 or attempt.resend:
            return False
        for item in reversed(attempt.items):
            self._ready.appendleft(self._attempt((item,), resend=True))
        return True

    def _let_go(self, item: Item) -> None:
        self._payloads -= 1
        self._payload_bytes -= len(item.prepared.data)

    def _give_up(self, item: Item, error: RequestError) -> None:
        self._outlet.put(ImageFailure.from_error(item.index, error, item.prepared.source))

    def _break(self, error: RequestError) -> None:
        self._broken = error
        unsent = [item for attempt in self._ready for item in attempt.items]
        unsent += [item for _, _, attempt in self._waiting for item in attempt.items]
        unsent += self._gathering
        self._ready.clear()
        self._waiting.clear()
        self._gathering = []
        for item in unsent:
            self._let_go(item)
            self._give_up(item, error)
