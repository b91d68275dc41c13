"""What every step of ``make gpu-check`` works on, and how each rate is taken."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nima_build.metadata import ModelMetadata

SECONDS = 2.0
"""How long each rate is measured."""

Step = Callable[["Context"], dict[str, Any]]


class Skip(Exception):
    """A step that cannot run here; the message says why."""


@dataclass(frozen=True)
class Context:
    """What every step works on.

    Attributes:
        network: folder of the exported network.
        metadata: its facts.
        names: of the photos.
        jpegs: the photos as JPEG files.
        pixels: the photos preprocessed by the reference, uint8 ``[N, S, S, 3]``.
        scratch: folder for an engine.
    """

    network: Path
    metadata: ModelMetadata
    names: list[str]
    jpegs: list[bytes]
    pixels: npt.NDArray[Any]
    scratch: Path


def rate(work: Callable[[], object], images: int, seconds: float | None = None) -> float:
    """Images per second of ``work`` for so long (:data:`SECONDS`), after one run to warm up."""
    work()
    seconds = SECONDS if seconds is None else seconds
    runs, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        work()
        runs += 1
    return round(images * runs / elapsed, 1)


def batch_of(pixels: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """So many images, the first ones again where there are fewer."""
    return np.resize(pixels, (size, *pixels.shape[1:]))
