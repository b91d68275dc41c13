"""The client for asyncio: the same calls, awaited."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Literal, overload

from nima_client._arguments import OnError, check_images, check_on_error
from nima_client._async_calls import AsyncCalls
from nima_client._base import C
from nima_client._images import ImageInput
from nima_client._outcome import one_result, raise_failures
from nima_client._source import Images
from nima_client.results import ImageFailure, ImageScore, ModelInfo

if TYPE_CHECKING:
    from types import TracebackType


class AsyncNimaClient(AsyncCalls):
    """Scores images on a NIMA server, with asyncio.

    Options: see :class:`~nima_client._base.BaseClient`. The calls mean what they mean on
    :class:`~nima_client.NimaClient`. One client belongs to one event loop at a time, whose tasks
    may all use it at once; cancelling a task cancels its requests on the server.
    Files are read and pixels encoded in a thread, so that the loop never waits for them.

    Example:
        >>> async with AsyncNimaClient("127.0.0.1:8001") as client:
        ...     scores = await client.score(["beach.jpg", "blurred.jpg"])
    """

    # -- scoring -------------------------------------------------------------------------------

    @overload
    async def score(
        self,
        images: Images,
        *,
        on_error: Literal["raise"] = "raise",
        timeout: float | None = None,
    ) -> list[ImageScore]: ...

    @overload
    async def score(
        self,
        images: Images,
        *,
        on_error: Literal["return"],
        timeout: float | None = None,
    ) -> list[ImageScore | ImageFailure]: ...

    async def score(
        self,
        images: Images,
        *,
        on_error: OnError = "raise",
        timeout: float | None = None,
    ) -> list[ImageScore] | list[ImageScore | ImageFailure]:
        """Score images; see :meth:`NimaClient.score`. ``images`` may also be an async iterable.

        When the call cannot go on (its time is over, the server is gone) while an async iterable is
        waited for, one more failure stands for the image that did not come and all after it.
        """
        check_on_error(on_error)
        results = [r async for r in self._run(images, timeout)]
        return results if on_error == "return" else raise_failures(results)

    async def score_one(self, image: ImageInput, *, timeout: float | None = None) -> ImageScore:
        """Score one image; see :meth:`NimaClient.score_one`."""
        return one_result([r async for r in self._run([image], timeout)])

    @overload
    def score_iter(
        self,
        images: Images,
        *,
        ordered: bool = True,
        on_error: Literal["raise"] = "raise",
        timeout: float | None = None,
    ) -> AsyncGenerator[ImageScore, None]: ...

    @overload
    def score_iter(
        self,
        images: Images,
        *,
        ordered: bool = True,
        on_error: Literal["return"],
        timeout: float | None = None,
    ) -> AsyncGenerator[ImageScore | ImageFailure, None]: ...

    def score_iter(
        self,
        images: Images,
        *,
        ordered: bool = True,
        on_error: OnError = "raise",
        timeout: float | None = None,
    ) -> AsyncGenerator[ImageScore, None] | AsyncGenerator[ImageScore | ImageFailure, None]:
        """Score an endless stream in constant memory; see :meth:`NimaClient.score_iter`.

        Results come out while an async iterable is waited for. When leaving the loop early, close
        the iterator (``contextlib.aclosing``), so that requests under way are cancelled at once.
        """
        check_on_error(on_error)
        check_images(images)
        return self._run(images, timeout, ordered=ordered, drain=False, on_error=on_error)

    async def model_info(self) -> ModelInfo:
        """What the server serves; see :meth:`NimaClient.model_info`."""
        return await self._contact(None)

    async def close(self) -> None:
        """Close the connection; calls under way end with an error."""
        await self._transport.close_async()

    async def __aenter__(self: C) -> C:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
