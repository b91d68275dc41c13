"""One request of a call, and the images it carries."""

from __future__ import annotations

from dataclasses import dataclass

from nima_client._images import Prepared
from nima_client.errors import DeadlineExceeded, RequestError

OUT_OF_TIME = "the time allowed for the call ran out"


@dataclass(frozen=True, slots=True)
class Item:
    """One accepted image."""

    index: int
    prepared: Prepared


@dataclass(slots=True, eq=False)
class Attempt:
    """One request to send.

    Attributes:
        items: its images, in row order.
        request_id: id of the request, whichever time it is sent.
        number: 1 for the first time, 2 for the first retry …
        resend: carries the good images of a request that was refused for its bad ones.
        refused: how many of its sendings an overloaded server turned away.
        first_sent: when it was sent for the first time.
        last_error: why it is being sent again.
    """

    items: tuple[Item, ...]
    request_id: str
    number: int = 1
    resend: bool = False
    refused: int = 0
    first_sent: float | None = None
    last_error: RequestError | None = None

    @property
    def wire_id(self) -> str:
        """The id of this sending, so that both sides' logs can tell them apart."""
        return self.request_id if self.number == 1 else f"{self.request_id}.{self.number}"

    def late(self) -> DeadlineExceeded:
        """That time ran out, with what went wrong before."""
        before = "" if self.last_error is None else f"; before: {self.last_error.message}"
        return DeadlineExceeded(OUT_OF_TIME + before, request_id=self.wire_id)
