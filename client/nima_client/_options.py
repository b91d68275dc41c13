"""What each call of a client goes by; the connection is not part of it."""

from __future__ import annotations

import enum
import numbers
from dataclasses import dataclass, field

from nima_client import _defaults
from nima_client._connection import check_seconds
from nima_client._retry import RetryPolicy
from nima_client.preprocess import Limits


class NotGiven(enum.Enum):
    """Type of :data:`NOT_GIVEN`, for arguments where None has a meaning of its own."""

    NOT_GIVEN = "not given"

    def __repr__(self) -> str:
        return "NOT_GIVEN"


NOT_GIVEN = NotGiven.NOT_GIVEN


@dataclass(frozen=True, slots=True)
class CallOptions:
    """Options of a client that a single call may want otherwise; see ``BaseClient``.

    Raises:
        ValueError: an option out of range.
        TypeError: ``retry`` or ``limits`` of another type.
    """

    request_size: int | None = _defaults.REQUEST_SIZE
    max_in_flight: int = _defaults.MAX_IN_FLIGHT
    timeout: float | None = None
    request_timeout: float | None = _defaults.REQUEST_TIMEOUT_S
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    limits: Limits = field(default_factory=Limits)
    max_side: int | None = _defaults.MAX_SIDE

    def __post_init__(self) -> None:
        check_kind("retry", self.retry, RetryPolicy)
        check_kind("limits", self.limits, Limits)
        for name in ("request_size", "max_in_flight", "max_side"):
            value = getattr(self, name)
            if value is None and name != "max_in_flight":
                continue
            if not isinstance(value, numbers.Integral) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
        if self.request_timeout is not None:
            check_seconds("request_timeout", self.request_timeout)
        if self.timeout is not None:
            check_seconds("timeout", self.timeout)


def check_kind(name: str, value: object, kind: type) -> None:
    """Refuse an option of another type, which would fail only where it is used.

    Raises:
        TypeError: says which option, and of which type it is. Not its value: it may be a secret.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, not {type(value).__name__}")
