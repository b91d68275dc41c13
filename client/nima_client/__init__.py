"""Typed client of the NIMA photo scoring service.

    import nima_client

    for score in nima_client.score(["beach.jpg", "blurred.jpg"]):
        print(score.mean, score.std, score.percentile)

Services keep a :class:`NimaClient` (threads) or an :class:`AsyncNimaClient` (asyncio).
"""

from nima_client._async_client import AsyncNimaClient
from nima_client._client import NimaClient
from nima_client._connection import TLS
from nima_client._images import ImageInput
from nima_client._retry import NO_RETRIES, RetryPolicy
from nima_client._score import score
from nima_client.contract import RejectionCode
from nima_client.errors import (
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
    ScoringError,
    ServerStopping,
    Stage,
    TLSError,
    TransportError,
)
from nima_client.preprocess import Limits
from nima_client.results import ImageFailure, ImageScore, ModelInfo

__version__ = "0.1.0"

__all__ = [
    "NO_RETRIES",
    "TLS",
    "AsyncNimaClient",
    "AuthenticationError",
    "ConnectError",
    "ContractError",
    "DeadlineExceeded",
    "ImageFailure",
    "ImageInput",
    "ImageRejectedError",
    "ImageScore",
    "Limits",
    "ModelError",
    "ModelInfo",
    "NimaClient",
    "NimaError",
    "OverloadError",
    "QueueFull",
    "QueueTimeout",
    "RejectionCode",
    "RequestCancelled",
    "RequestError",
    "RetryPolicy",
    "ScoringError",
    "ServerStopping",
    "Stage",
    "TLSError",
    "TransportError",
    "__version__",
    "score",
]
