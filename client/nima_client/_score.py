"""The one-line ``score()`` for scripts and notebooks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, overload

from nima_client._arguments import OnError
from nima_client._client import NimaClient
from nima_client._images import ImageInput
from nima_client.results import ImageFailure, ImageScore


@overload
def score(
    images: Iterable[ImageInput],
    *,
    url: str | None = None,
    on_error: Literal["raise"] = "raise",
    timeout: float | None = None,
) -> list[ImageScore]: ...


@overload
def score(
    images: Iterable[ImageInput],
    *,
    url: str | None = None,
    on_error: Literal["return"],
    timeout: float | None = None,
) -> list[ImageScore | ImageFailure]: ...


def score(
    images: Iterable[ImageInput],
    *,
    url: str | None = None,
    on_error: OnError = "raise",
    timeout: float | None = None,
) -> list[ImageScore] | list[ImageScore | ImageFailure]:
    """Score images with a client made for this call: for scripts and notebooks.

    Services keep a :class:`NimaClient`, and with it the connection.

    Args:
        images: as for :meth:`NimaClient.score`.
        url: server; None takes ``$NIMA_URL``, else ``127.0.0.1:8001``.
        on_error: as for :meth:`NimaClient.score`.
        timeout: seconds that the call may take.

    Returns:
        One result for each image, in input order.

    Raises:
        NimaError: as for :meth:`NimaClient.score`.
    """
    with NimaClient(url) as client:
        if on_error == "return":
            return client.score(images, on_error="return", timeout=timeout)
        return client.score(images, on_error=on_error, timeout=timeout)
