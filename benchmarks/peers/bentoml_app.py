"""BentoML: a worker a core, the file as root input."""

from __future__ import annotations

import os
from pathlib import Path

import bentoml
from scoring import make_scorer


@bentoml.service(
    workers=int(os.environ["NIMA_WORKERS"]),
    traffic={"timeout": 60},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class Nima:
    """One process a worker."""

    def __init__(self) -> None:
        self._scorer = make_scorer()

    @bentoml.api(route="/score")
    def score(self, image: Path, /) -> dict:
        """Score the image in the body."""
        return self._scorer(image.read_bytes())
