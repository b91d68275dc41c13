"""When a failed request is sent again."""

from __future__ import annotations

import random
from dataclasses import dataclass

from nima_client import _defaults


@dataclass(frozen=True)
class RetryPolicy:
    """Retries with jittered exponential backoff inside one budget.

    Only errors whose ``retryable`` is true are retried; a rejected image never is. No retry is
    waited for that could only begin after the call's deadline.

    Attributes:
        attempts: times one request is sent at most, the first included; 1 turns retries off.
            Refusals of an overloaded server (:class:`~nima_client.OverloadError`) do not count:
            they end with the budget, or with the deadline.
        budget_s: seconds for which a call keeps retrying while none of its requests succeeds. The
            clock starts at the first failure, and any success sets it back.
        initial_backoff_s: wait before the second attempt, in seconds.
        max_backoff_s: longest wait, in seconds.
        multiplier: growth of the wait from one attempt to the next.
        jitter: share of each wait that is random, 0..1.
    """

    attempts: int = _defaults.RETRY_ATTEMPTS
    budget_s: float = _defaults.RETRY_BUDGET_S
    initial_backoff_s: float = _defaults.RETRY_INITIAL_BACKOFF_S
    max_backoff_s: float = _defaults.RETRY_MAX_BACKOFF_S
    multiplier: float = _defaults.RETRY_MULTIPLIER
    jitter: float = _defaults.RETRY_JITTER

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, not {self.attempts}")
        if not 0.0 <= self.jitter <= 1.0:
            raise ValueError(f"jitter must lie in 0..1, not {self.jitter}")
        if not self.multiplier >= 1.0:  # as in the others: NaN would be waited for without end
            raise ValueError(f"multiplier must be at least 1, not {self.multiplier}")
        times = (self.budget_s, self.initial_backoff_s, self.max_backoff_s)
        if not all(seconds >= 0 for seconds in times):
            raise ValueError("budget_s and the backoffs must not be negative")

    def backoff(self, failures: int, rng: random.Random) -> float:
        """Seconds to wait after the ``failures``-th failure (from 1) of one request."""
        grown = self.initial_backoff_s * self.multiplier ** min(failures - 1, 64)
        full = min(self.max_backoff_s, grown)
        return full * (1.0 - self.jitter * rng.random())


NO_RETRIES = RetryPolicy(attempts=1)
"""Every failure is final."""
