"""The client for threads."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Literal, overload

from nima_client._arguments import OnError, check_images, check_on_error
from nima_client._base import C
from nima_client._calls import ThreadCalls
from nima_client._images import ImageInput
from nima_client._outcome import one_result, raise_failures
from nima_client.results import ImageFailure, ImageScore, ModelInfo

if TYPE_CHECKING:
    from types import TracebackType


class NimaClient(ThreadCalls):
    """Scores images on a NIMA server. Options: see :class:`~nima_client._base.BaseClient`.

    The first call opens the connection and checks the server's contract. One client may be used by
    many threads at once; each call has its own window of requests. After ``os.fork`` a child may
    use the client of its parent, provided that no other thread was inside a call at that moment.

    Example:
        >>> with NimaClient("127.0.0.1:8001") as client:
        ...     for score in client.score(["beach.jpg", "blurred.jpg"]):
        ...         print(score.mean, score.std, score.percentile)
    """

    # -- scoring -------------------------------------------------------------------------------

    @overload
    def score(
        self,
        images: Iterable[ImageInput],
        *,
        on_error: Literal["raise"] = "raise",
        timeout: float | None = None,
    ) -> list[ImageScore]: ...

    @overload
    def score(
        self,
        images: Iterable[ImageInput],
        *,
        on_error: Literal["return"],
        timeout: float | None = None,
    ) -> list[ImageScore | ImageFailure]: ...

    def score(
        self,
        images: Iterable[ImageInput],
        *,
        on_error: OnError = "raise",
        timeout: float | None = None,
    ) -> list[ImageScore] | list[ImageScore | ImageFailure]:
        """Score images.

        Args:
            images: paths, bytes of image files, binary file objects, PIL images or uint8 arrays
                (:data:`~nima_client.ImageInput`), mixed as you like.
            on_error: ``"raise"`` raises when any image has no score; ``"return"`` puts an
                :class:`ImageFailure` in its place.
            timeout: seconds that the whole call may take, none if 0 or less, apart from waiting for
                a slow iterable (see :meth:`score_iter`); also sent to the server.

        Returns:
            One result for each image, in input order.

        Raises:
            ScoringError: (``on_error="raise"``) carries the failures by index and the good scores.
            TransportError: no server could be reached, before any image was sent.
            ContractError: that server is not NIMA, or speaks another contract.
            TypeError: an input that is no image.
            ValueError: a ``timeout`` that is no number of seconds.
        """
        check_on_error(on_error)
        results = list(self._run(images, timeout))
        return results if on_error == "return" else raise_failures(results)

    def score_one(self, image: ImageInput, *, timeout: float | None = None) -> ImageScore:
        """Score one image.

        Args:
            image: as for :meth:`score`.
            timeout: seconds that the call may take.

        Raises:
            ImageRejectedError: this image cannot be scored.
            RequestError: any other reason, as itself.
        """
        return one_result(list(self._run([image], timeout)))

    @overload
    def score_iter(
        self,
        images: Iterable[ImageInput],
        *,
        ordered: bool = True,
        on_error: Literal["raise"] = "raise",
        timeout: float | None = None,
    ) -> Generator[ImageScore, None, None]: ...

    @overload
    def score_iter(
        self,
        images: Iterable[ImageInput],
        *,
        ordered: bool = True,
        on_error: Literal["return"],
        timeout: float | None = None,
    ) -> Generator[ImageScore | ImageFailure, None, None]: ...

    def score_iter(
        self,
        images: Iterable[ImageInput],
        *,
        ordered: bool = True,
        on_error: OnError = "raise",
        timeout: float | None = None,
    ) -> Generator[ImageScore, None, None] | Generator[ImageScore | ImageFailure, None, None]:
        """Score an endless stream in constant memory.

        Images are taken from the iterator only as the window of requests has room. Leaving the loop
        cancels what is under way.

        Args:
            images: any iterable; it is read in the calling thread. While that one waits for the
                next image, nothing is handed over and the deadline is not looked at: where images
                come slowly, let the iterable end by itself, or take an async one with
                :class:`AsyncNimaClient`, which waits for both.
            ordered: results in input order, or as they complete (``index`` tells which is which).
            on_error: ``"raise"`` raises the reason of the first image without a score;
                ``"return"`` yields an :class:`ImageFailure` for it.
            timeout: seconds that the whole stream may take, apart from waiting for the iterable.

        Yields:
            One result for each image.

        Raises:
            RequestError: an image failed (``on_error="raise"``); or, in both modes and after the
                results that were reached, what makes going on pointless (the server is gone).
            Exception: what the iterable itself raised, after the results of all it gave before.
        """
        check_on_error(on_error)
        check_images(images)
        return self._run(images, timeout, ordered=ordered, drain=False, on_error=on_error)

    def model_info(self) -> ModelInfo:
        """What the server serves: versions, checkpoint, preprocessing, reference quantiles.

        Asks the server each time.

        Raises:
            TransportError: no server could be reached.
            ContractError: it is not NIMA, or speaks another contract.
        """
        return self._contact(None)

    def close(self) -> None:
        """Close the connection; calls under way in other threads end with an error."""
        self._transport.close()

    def __enter__(self: C) -> C:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
