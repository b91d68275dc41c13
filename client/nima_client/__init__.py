"""Typed client of the NIMA photo scoring service.

    import nima_client

    for score in nima_client.score(["beach.jpg", "blurred.jpg"]):
        print(score.mean, score.std, score.percentile)

Services keep a :class:`NimaClient` (threads) or an :class:`AsyncNimaClient` (asyncio).

Names are imported when they are first asked for (PEP 562): gRPC takes time and memory, and the
command line, the models inside Triton and training get by without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

    from . import contract as contract
    from . import errors as errors
    from . import preprocess as preprocess
    from . import results as results

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

_MODULES = frozenset(("contract", "errors", "preprocess", "results"))
# The module of each name; errors are in `errors`.
_HOMES = {
    "NO_RETRIES": "_retry",
    "TLS": "_connection",
    "AsyncNimaClient": "_async_client",
    "ImageFailure": "results",
    "ImageInput": "_images",
    "ImageScore": "results",
    "Limits": "preprocess",
    "ModelInfo": "results",
    "NimaClient": "_client",
    "RejectionCode": "contract",
    "RetryPolicy": "_retry",
    "score": "_score",
}


if not TYPE_CHECKING:  # to a type checker, any name would be one

    def __getattr__(name: str) -> Any:
        """A public name, from the module that defines it."""
        if name in _MODULES:
            return importlib.import_module(f"{__name__}.{name}")
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = importlib.import_module(f"{__name__}.{_HOMES.get(name, 'errors')}")
        value = getattr(home, name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
