"""The images of an asyncio call, one after another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Union

from nima_client._images import (
    ImageInput,
    PrepareOptions,
    exact_count,
    is_instant,
    prepare,
)
from nima_client._plan import Plan
from nima_client.errors import ImageRejectedError

Images = Union[Iterable[ImageInput], AsyncIterable[ImageInput]]  # noqa: UP007  (3.10)


class Source:
    """Numbered images of an iterable or an async iterable.

    Attributes:
        taken: the image read last and its number, until a plan has it: a call that ends meanwhile
            owes it a result.
    """

    def __init__(self, images: Images) -> None:
        self.taken: tuple[int, ImageInput] | None = None
        self._total = exact_count(images)
        self._next = 0
        self._plain: Iterator[ImageInput] | None = None
        self._waiting: AsyncIterator[ImageInput] | None = None
        self._reading = False
        if isinstance(images, AsyncIterable):
            self._waiting = images.__aiter__()
        else:
            self._plain = iter(images)

    async def take(self) -> tuple[int, ImageInput]:
        """The image in ``taken``, or the next one, which is there from then on.

        Raises:
            StopAsyncIteration: there are no more.
        """
        if self.taken is not None:
            return self.taken
        if self._plain is not None:
            try:
                return self._number(next(self._plain))
            except StopIteration:
                raise StopAsyncIteration from None
        assert self._waiting is not None
        self._reading = True
        try:
            image = await self._waiting.__anext__()
        except StopAsyncIteration:
            self._reading = False
            raise
        self._reading = False
        return self._number(image)

    def add_instant(self, plan: Plan, options: PrepareOptions) -> bool:
        """Feed the plan without waiting, where that is possible; whether it was."""
        if self._plain is None or self.taken is not None:
            return False
        try:
            index, image = self._number(next(self._plain))
        except StopIteration:
            plan.end_of_input()
            return True
        except Exception as error:
            plan.end_of_input(error)
            return True
        if not is_instant(image) or options.max_side is not None:
            return False
        try:
            prepared = prepare(image, options, index)
        except ImageRejectedError:
            return False  # nothing is sent of it, and nobody else would have a turn
        plan.add(index, prepared)
        self.added(plan)
        return True

    def added(self, plan: Plan) -> None:
        """The plan has the image in ``taken``."""
        self.taken = None
        if self._next == self._total:
            plan.end_of_input()

    async def rest(self) -> AsyncIterator[tuple[int, ImageInput | None]]:
        """What a call that cannot go on owes a result: the image in ``taken``, and those unread.

        An async iterable is read on as long as it gives images at once. One that has to be waited
        for, or was being waited for as the call ended, is left: None stands for its next image and
        for all after it.
        """
        while True:
            if self.taken is None:
                try:
                    await self._take_at_once()
                except StopAsyncIteration:
                    return
            if self.taken is None:
                yield self._next, None
                return
            yield self.taken
            self.taken = None

    async def _take_at_once(self) -> None:
        if self._plain is not None:
            await self.take()
            return
        if self._reading:
            # Cancelled there, a generator is over and would seem to be at its end.
            return
        step = asyncio.ensure_future(self.take())
        try:
            await asyncio.sleep(0)
        finally:
            if not step.done():
                step.cancel()
                await asyncio.gather(step, return_exceptions=True)
        if not step.cancelled():
            step.result()

    def _number(self, image: ImageInput) -> tuple[int, ImageInput]:
        self.taken = self._next, image
        self._next += 1
        return self.taken
