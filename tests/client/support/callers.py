"""Both clients behind one blocking interface, so that every assertion is made of both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

from nima_client import AsyncNimaClient, ImageFailure, ImageScore, ModelInfo, NimaClient

Result = Any  # ImageScore | ImageFailure


class SyncCaller:
    """NimaClient as it is."""

    kind = "sync"

    def __init__(self, *args: Any, **options: Any) -> None:
        self.client = NimaClient(*args, **options)

    def score(self, images: Iterable[Any], **options: Any) -> list[Result]:
        return self.client.score(images, **options)

    def score_one(self, image: Any, **options: Any) -> ImageScore:
        return self.client.score_one(image, **options)

    def score_iter(self, images: Iterable[Any], **options: Any) -> Iterator[Result]:
        return self.client.score_iter(images, **options)

    def model_info(self) -> ModelInfo:
        return self.client.model_info()

    def close(self) -> None:
        self.client.close()

    def end(self) -> None:
        self.close()


class AsyncCaller:
    """AsyncNimaClient, driven by an event loop of its own."""

    kind = "async"

    def __init__(self, *args: Any, **options: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.client = AsyncNimaClient(*args, **options)

    def score(self, images: Iterable[Any], **options: Any) -> list[Result]:
        return self.loop.run_until_complete(self.client.score(images, **options))

    def score_one(self, image: Any, **options: Any) -> ImageScore:
        return self.loop.run_until_complete(self.client.score_one(image, **options))

    def score_iter(self, images: Iterable[Any], **options: Any) -> Iterator[Result]:
        stream: AsyncIterator[Any] = self.client.score_iter(images, **options)
        try:
            while True:
                try:
                    yield self.loop.run_until_complete(stream.__anext__())
                except StopAsyncIteration:
                    return
        finally:
            self.loop.run_until_complete(stream.aclose())  # type: ignore[attr-defined]

    def model_info(self) -> ModelInfo:
        return self.loop.run_until_complete(self.client.model_info())

    def close(self) -> None:
        self.loop.run_until_complete(self.client.close())

    def end(self) -> None:
        self.close()
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


CALLERS = {"sync": SyncCaller, "async": AsyncCaller}

__all__ = ["CALLERS", "AsyncCaller", "ImageFailure", "SyncCaller"]
