"""The one exception of the preprocessing."""

from __future__ import annotations

from nima_client.contract import RejectionCode


class ImageRejected(ValueError):
    """An image that cannot be scored, with the reason.

    Attributes:
        code: machine-readable reason.
        detail: one line for a person, free of addresses and file contents.
    """

    def __init__(self, code: RejectionCode, detail: str) -> None:
        super().__init__(f"{code.value}: {detail}")
        self.code = code
        self.detail = detail
