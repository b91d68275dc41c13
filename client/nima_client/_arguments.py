"""What a call is given: checked, and what goes along with it unasked."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterable, Iterable
from typing import Literal

from nima_client._connection import check_headers
from nima_client._images import is_single_image

OnError = Literal["raise", "return"]


def check_images(images: object) -> None:
    """Refuse one image where a sequence is meant, which Python would happily iterate over.

    Raises:
        TypeError: says how to pass one image.
    """
    if is_single_image(images):
        if isinstance(images, (str, os.PathLike)) and os.path.isdir(images):
            raise TypeError(f"{os.fspath(images)} is a folder: pass a list of its files")
        raise TypeError(
            f"this is one image ({type(images).__name__}): pass a list of images, "
            "or call score_one()"
        )
    if not isinstance(images, (Iterable, AsyncIterable)):
        raise TypeError(f"images must be a sequence of images, not {type(images).__name__}")


def check_on_error(on_error: str) -> None:
    """Refuse an unknown ``on_error``."""
    if on_error not in ("raise", "return"):
        raise ValueError(f"on_error must be 'raise' or 'return', not {on_error!r}")


def trace_headers() -> tuple[tuple[str, str], ...]:
    """W3C trace context of the current OpenTelemetry span, where the application uses it.

    OpenTelemetry is no dependency: when the application has not imported it, there is no span. What
    gRPC could not send stays here: no photo goes without a score for the sake of its trace.
    """
    if "opentelemetry" not in sys.modules:
        return ()
    try:
        from opentelemetry import propagate
    except ImportError:
        return ()
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple((key.lower(), value) for key, value in carrier.items() if _can_travel(key, value))


def _can_travel(key: str, value: str) -> bool:
    try:
        check_headers({key: value})
    except ValueError:
        return False
    return True
