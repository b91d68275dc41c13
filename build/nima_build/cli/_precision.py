"""The option --precision of the commands that run the network on a CPU."""

from __future__ import annotations

from enum import Enum


class Precision(str, Enum):
    """The keys of :data:`nima_build.repository.GRAPHS`, without importing it for the help."""

    fp32 = "fp32"
    int8 = "int8"
