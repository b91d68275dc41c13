"""One photo's result as a row: the form in which scores are kept, in every file format."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nima_client._numbers import real
from nima_client.contract import NUM_RATINGS
from nima_client.results import ImageFailure, ImageScore

PROBABILITIES = tuple(f"p{rating}" for rating in range(1, NUM_RATINGS + 1))
"""Names of the ten probabilities where a format has no lists (CSV)."""


@dataclass(frozen=True, slots=True)
class Row:
    """The score of one photo, as it is kept.

    What differs from run to run (request ids) is left out, so that two runs give equal files.

    Attributes:
        file: name of the photo.
        mean: mean rating, 1..10.
        std: standard deviation, 0..4.5.
        percentile: 0..100 among the checkpoint's reference photos; None without a reference.
        distribution: probabilities of the ratings 1..10.
        model_version: Triton's version of the model.
        checkpoint: name of the weights.
        checkpoint_sha256: their SHA-256, hex.
    """

    file: str
    mean: float
    std: float
    percentile: float | None
    distribution: tuple[float, ...]
    model_version: str = ""
    checkpoint: str = ""
    checkpoint_sha256: str = ""

    @classmethod
    def from_score(cls, file: str, score: ImageScore) -> Row:
        """The row of one score."""
        return cls(
            file=file,
            mean=round(score.mean, 6),
            std=round(score.std, 6),
            percentile=None if score.percentile is None else round(score.percentile, 3),
            distribution=tuple(round(p, 7) for p in score.distribution),
            model_version=score.model_version,
            checkpoint=score.checkpoint_name,
            checkpoint_sha256=score.checkpoint_sha256,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields, the distribution as a list."""
        return {
            "file": self.file,
            "mean": self.mean,
            "std": self.std,
            "percentile": self.percentile,
            "distribution": list(self.distribution),
            "model_version": self.model_version,
            "checkpoint": self.checkpoint,
            "checkpoint_sha256": self.checkpoint_sha256,
        }

    def to_flat(self) -> dict[str, Any]:
        """The same with ten columns ``p1`` … ``p10`` for the distribution."""
        fields = self.to_dict()
        probabilities = fields.pop("distribution")
        flat: dict[str, Any] = {}
        for name, value in fields.items():
            flat[name] = value
            if name == "percentile":
                flat.update(zip(PROBABILITIES, probabilities, strict=True))
        return flat

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Row:
        """A row out of :meth:`to_dict` or :meth:`to_flat`, also as text (CSV).

        Raises:
            ValueError: a field is missing or is no number; says which.
        """
        try:
            if fields.get("distribution") is not None:
                distribution = tuple(real(p) for p in fields["distribution"])
            else:
                distribution = tuple(real(fields[name]) for name in PROBABILITIES)
            percentile = fields.get("percentile")
            row = cls(
                file=str(fields["file"]),
                mean=real(fields["mean"]),
                std=real(fields["std"]),
                percentile=None if percentile in (None, "") else real(percentile),
                distribution=distribution,
                model_version=str(fields.get("model_version") or ""),
                checkpoint=str(fields.get("checkpoint") or ""),
                checkpoint_sha256=str(fields.get("checkpoint_sha256") or ""),
            )
        except KeyError as error:
            raise ValueError(f"no column {error.args[0]!r}") from None
        except (TypeError, OverflowError) as error:  # an integer of 400 digits
            raise ValueError(str(error)) from None
        if len(row.distribution) != NUM_RATINGS:
            raise ValueError(f"a distribution has {NUM_RATINGS} values, not {len(distribution)}")
        # real() reads "nan" and "inf", which would spoil every order and average.
        for name in ("mean", "std", "percentile"):
            value = getattr(row, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} is {value}, which is no number")
        if not all(map(math.isfinite, distribution)):
            raise ValueError("the distribution holds what is no number")
        return row


@dataclass(frozen=True, slots=True)
class FailedRow:
    """Why one photo has no score.

    Attributes:
        file: name of the photo.
        code: machine-readable reason; see :class:`nima_client.ImageFailure`.
        message: one line for a person.
    """

    file: str
    code: str
    message: str

    @classmethod
    def from_failure(cls, file: str, failure: ImageFailure) -> FailedRow:
        """The row of one failure."""
        # The client calls an image without a file name by its position; here it has a name.
        detail = getattr(failure.error, "detail", "") or failure.message
        return cls(file, failure.code, detail)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {"file": self.file, "code": self.code, "message": self.message}
