"""Why one request failed: every exception below :class:`~nima_client.errors.ScoringError`.

Apart from :mod:`nima_client.errors`, which is the public home of all of them, because results hold
a request's error and ``ScoringError`` holds results.
"""

from __future__ import annotations

import enum
from typing import ClassVar


class Stage(str, enum.Enum):
    """Where on the way from image to score a request failed."""

    TRANSPORT = "transport"
    OVERLOAD = "overload"
    IMAGE = "image"
    MODEL = "model"
    CONTRACT = "contract"


class NimaError(Exception):
    """Base of everything the client raises on purpose."""


class RequestError(NimaError):
    """Why one request, or one image, failed.

    Attributes:
        message: what happened and what to do about it, for a person.
        request_id: id under which the server saw the request (its log has the same one); empty when
            nothing was sent.
        stage: where it failed.
        code: short machine-readable name; goes into :attr:`ImageFailure.code`.
        retryable: whether sending the same request again may help. Scoring changes nothing on the
            server, so that repeating it is always safe.
    """

    stage: ClassVar[Stage]
    code: str = "ERROR"
    retryable: bool = False

    def __init__(
        self, message: str, *, request_id: str = "", retryable: bool | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.request_id = request_id
        if retryable is not None:
            self.retryable = retryable

    def __str__(self) -> str:
        if self.request_id:
            return f"{self.message} [request {self.request_id}]"
        return self.message


class TransportError(RequestError):
    """No answer came back from a server."""

    stage = Stage.TRANSPORT
    code = "TRANSPORT"
    retryable = True


class ConnectError(TransportError):
    """Nothing answers at that address: refused, reset, or a host name that does not resolve."""

    code = "UNREACHABLE"


class TLSError(TransportError):
    """The TLS handshake failed; a retry would fail the same way."""

    code = "TLS"
    retryable = False


class AuthenticationError(TransportError):
    """The server, or a proxy before it, wants other credentials or a header it was not given."""

    code = "UNAUTHENTICATED"
    retryable = False


class ServerStopping(TransportError):
    """The server is draining; another one, or the same one restarted, will answer."""

    code = "STOPPING"


class DeadlineExceeded(TransportError):
    """The time that the call or the request was allowed ran out."""

    code = "DEADLINE"
    retryable = False


class RequestCancelled(TransportError):
    """The call was cancelled before an answer came."""

    code = "CANCELLED"
    retryable = False


class OverloadError(RequestError):
    """The server has more work than it takes; less load or more servers will help."""

    stage = Stage.OVERLOAD
    code = "OVERLOAD"
    retryable = True


class QueueFull(OverloadError):
    """The server's queue is full, and the request was refused at once."""

    code = "QUEUE_FULL"


class QueueTimeout(OverloadError):
    """The request waited in the server's queue longer than the server allows."""

    code = "QUEUE_TIMEOUT"


class ImageRejectedError(RequestError):
    """The image cannot be scored, whoever asks.

    Attributes:
        code: a value of :class:`nima_client.RejectionCode`, or ``"UNREADABLE"`` for a file that
            could not be read here.
        index: position of the image in the call's input.
        detail: one line for a person.
        source: name of the file, when the image came as a path or an open file.
    """

    stage = Stage.IMAGE
    code = "REJECTED"

    def __init__(
        self,
        message: str,
        *,
        code: str = "REJECTED",
        index: int = 0,
        detail: str = "",
        source: str | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message, request_id=request_id)
        self.code = code
        self.index = index
        self.detail = detail or message
        self.source = source


class ModelError(RequestError):
    """The server failed while scoring (a crashed model, a broken engine)."""

    stage = Stage.MODEL
    code = "MODEL"
    retryable = True


class ContractError(RequestError):
    """The server does not speak the contract that this client was written for."""

    stage = Stage.CONTRACT
    code = "CONTRACT"
