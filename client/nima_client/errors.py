"""Every exception that the client raises on purpose.

    NimaError
    ├── ScoringError                 images of a call have no score; carries both
    └── RequestError                 why one request, or one image, failed
        ├── TransportError           stage "transport": no answer came back
        │   ├── ConnectError         refused, reset, unknown host: nothing listens there (retried)
        │   ├── TLSError             the handshake failed: wrong certificate, or TLS against plain
        │   ├── AuthenticationError  the server wants credentials it was not given
        │   ├── ServerStopping       the server drains before it stops (retried)
        │   ├── DeadlineExceeded     the time allowed ran out
        │   └── RequestCancelled     the call was cancelled, or the client closed
        ├── OverloadError            stage "overload": the server has more work than it takes
        │   ├── QueueFull            refused at the door (retried)
        │   └── QueueTimeout         waited in the queue longer than the server allows (retried)
        ├── ImageRejectedError       stage "image": this image cannot be scored; never retried
        ├── ModelError               stage "model": the server failed while scoring
        └── ContractError            stage "contract": not a NIMA server, or of another contract

Two rules say which one you meet:

- What goes wrong before the first image is sent (connecting, the contract check) is raised as
  itself, and so is everything from ``score_one``.
- ``score`` raises :class:`ScoringError` when any image has no score. It holds the scores that were
  reached (``scores``), one :class:`~nima_client.ImageFailure` for each image without
  (``failures``), and the first underlying error as ``__cause__``.

All of them can be pickled (multiprocessing, Ray).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nima_client._request_errors import (
    AuthenticationError,
    ConnectError,
    ContractError,
    DeadlineExceeded,
    ImageRejectedError,
    ModelError,
    NimaError,
    OverloadError,
    QueueFull,
    QueueTimeout,
    RequestCancelled,
    RequestError,
    ServerStopping,
    Stage,
    TLSError,
    TransportError,
)
from nima_client.results import ImageFailure, ImageScore

__all__ = [
    "AuthenticationError",
    "ConnectError",
    "ContractError",
    "DeadlineExceeded",
    "ImageRejectedError",
    "ModelError",
    "NimaError",
    "OverloadError",
    "QueueFull",
    "QueueTimeout",
    "RequestCancelled",
    "RequestError",
    "ScoringError",
    "ServerStopping",
    "Stage",
    "TLSError",
    "TransportError",
]


class ScoringError(NimaError):
    """Some images of a :meth:`score` call have no score.

    Attributes:
        scores: the scores that were reached, by index into the input.
        failures: one entry for each image without a score, by ascending index.
    """

    def __init__(
        self,
        message: str,
        scores: Mapping[int, ImageScore] | None = None,
        failures: Sequence[ImageFailure] = (),
    ) -> None:
        super().__init__(message)
        self.scores: dict[int, ImageScore] = dict(scores or {})
        self.failures: tuple[ImageFailure, ...] = tuple(failures)

    @property
    def stages(self) -> frozenset[Stage]:
        """Every stage at which an image of this call failed."""
        return frozenset(failure.stage for failure in self.failures)


for _name in __all__:
    # As users import them: in tracebacks, in pickles.
    globals()[_name].__module__ = __name__
