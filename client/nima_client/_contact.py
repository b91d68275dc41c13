"""The first contact of a call: how long it may take, and when it is tried again."""

from __future__ import annotations

import random
import time

from nima_client._retry import RetryPolicy
from nima_client.errors import RequestError


class Contact:
    """The tries of one first contact.

    Args:
        retry: retry policy; as in a call, its budget begins with the first failure.
        rng: source of jitter.
        timeout: seconds that all tries may take.
        deadline: monotonic time at which the call ends; None for never.
    """

    def __init__(
        self, retry: RetryPolicy, rng: random.Random, timeout: float, deadline: float | None
    ) -> None:
        end = time.monotonic() + timeout
        self._end = end if deadline is None else min(end, deadline)
        self._retry = retry
        self._rng = rng
        self._failures = 0
        self._failing_since = 0.0

    def time_left(self) -> float:
        """Seconds that one more try may take."""
        return max(0.001, self._end - time.monotonic())

    def wait_after(self, error: RequestError) -> float:
        """Seconds to wait before the next try.

        Raises:
            RequestError: ``error``, where there is none.
        """
        now = time.monotonic()
        if not self._failures:
            self._failing_since = now
        self._failures += 1
        wait = self._retry.backoff(self._failures, self._rng)
        if (
            not error.retryable
            or self._failures >= self._retry.attempts
            or now - self._failing_since >= self._retry.budget_s
            or now + wait >= self._end
        ):
            raise error
        return wait
