"""How long a call goes on when its requests fail."""

from __future__ import annotations

import random

from nima_client import errors
from nima_client._attempt import Attempt
from nima_client._retry import RetryPolicy
from nima_client.errors import RequestError, Stage


class Patience:
    """The retry policy as one call applies it, over all of its requests.

    Args:
        retry: retry policy.
        deadline: time at which the call ends; None for never.
        rng: source of jitter.
    """

    def __init__(self, retry: RetryPolicy, deadline: float | None, rng: random.Random) -> None:
        self._retry = retry
        self._deadline = deadline
        self._rng = rng
        self._failing_since: float | None = None
        self._last_success = float("-inf")

    def alive(self, now: float) -> None:
        """The server answered."""
        self._last_success = now
        self._failing_since = None

    def retry_at(self, attempt: Attempt, error: RequestError, now: float) -> float | None:
        """When to send a failed request again; None for never."""
        if self._failing_since is None:
            self._failing_since = now
        attempt.refused += error.stage is Stage.OVERLOAD
        counted = attempt.number - attempt.refused
        due = now + self._retry.backoff(attempt.number, self._rng)
        if (
            self._retry.attempts == 1
            or counted >= self._retry.attempts
            or now - self._failing_since >= self._retry.budget_s
            # Known now, the reason is worth more than a DeadlineExceeded later.
            or (self._deadline is not None and due >= self._deadline)
        ):
            return None
        return due

    def is_over(self, attempt: Attempt, error: RequestError, now: float) -> bool:
        """Whether sending the rest of the call is pointless."""
        if error.stage in (Stage.IMAGE, Stage.MODEL):
            return False
        if not error.retryable and not isinstance(error, errors.DeadlineExceeded):
            return True
        since = self._failing_since
        if since is not None and now - since >= self._retry.budget_s:
            return True
        # Nobody else got through since this request went out for the first time.
        silent = attempt.first_sent is None or self._last_success < attempt.first_sent
        return error.stage is Stage.TRANSPORT and silent
