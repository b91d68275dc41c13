"""What a call gives back: frozen, typed values that know where they came from."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from nima_client._names import writable
from nima_client._request_errors import RequestError, Stage
from nima_client.contract import ServedModel

__all__ = ["ImageFailure", "ImageScore", "ModelInfo"]


@dataclass(frozen=True, slots=True, repr=False)
class ImageScore:
    """The predicted ratings of one image.

    Attributes:
        index: position of the image in the call's input, from 0.
        mean: mean rating, 1..10; the NIMA score.
        std: standard deviation of the ratings, 0..4.5: how much people would disagree.
        distribution: ten probabilities, of the ratings 1..10; they sum to 1.
        percentile: share, 0..100, of the checkpoint's reference photos whose predicted mean is
            lower; None when the checkpoint carries no reference. Raw means crowd together (80 % of
            the bundled model's between 3.7 and 4.7): this is the number to show to people.
        source: name of the file, when the image came as a path or an open file; else None.
        model_name: Triton model that answered.
        model_version: version of that model, as Triton counts.
        checkpoint_name: name of the weights.
        checkpoint_sha256: SHA-256 of the weights, hex: two scores are comparable when it is equal
            and both servers run the same precision (``model_info().served.precision``).
        request_id: id under which the server saw the request.
    """

    index: int
    mean: float
    std: float
    distribution: tuple[float, ...]
    percentile: float | None = None
    source: str | None = None
    model_name: str = ""
    model_version: str = ""
    checkpoint_name: str = ""
    checkpoint_sha256: str = ""
    request_id: str = ""

    def __repr__(self) -> str:
        """What one looks for in a list of scores; ``to_dict`` has everything."""
        text = f"index={self.index}, mean={self.mean:.2f}, std={self.std:.2f}"
        if self.percentile is not None:
            text += f", percentile={percentile_text(self.percentile)}"
        if self.source is not None:
            text += f", source={self.source!r}"
        return f"ImageScore({text})"

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain Python values, ready for JSON; the distribution is a list."""
        row = {name: getattr(self, name) for name in _SCORE_FIELDS}
        row["distribution"] = list(self.distribution)
        return row

    def to_json(self) -> str:
        r"""One line of JSON. Bytes of a file's name that are not UTF-8 are escaped (``\xe9``)."""
        return _to_json(self.to_dict())

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> ImageScore:
        """The score that :meth:`to_dict` wrote; unknown keys are ignored."""
        known = {name: row[name] for name in _SCORE_FIELDS if name in row}
        known["distribution"] = tuple(float(p) for p in row["distribution"])
        return cls(**known)


@dataclass(frozen=True, slots=True)
class ImageFailure:
    """Why one image has no score.

    Attributes:
        index: position of the image in the call's input, from 0.
        code: why, machine-readable: a :class:`RejectionCode` value for a refused image,
            ``"UNREADABLE"`` for a file that could not be read here, or the ``code`` of the error.
        message: one line for a person.
        stage: where it failed.
        source: name of the file, when the image came as a path or an open file; else None.
        request_id: id under which the server saw the request; empty when nothing was sent.
        error: the exception itself, ready to raise; does not take part in comparisons.
    """

    index: int
    code: str
    message: str
    stage: Stage
    source: str | None = None
    request_id: str = ""
    error: RequestError | None = field(default=None, compare=False, repr=False)

    @classmethod
    def from_error(cls, index: int, error: RequestError, source: str | None = None) -> ImageFailure:
        """The failure of image ``index`` that ``error`` explains."""
        return cls(
            index=index,
            code=error.code,
            message=error.message,
            stage=error.stage,
            source=source,
            request_id=error.request_id,
            error=error,
        )

    def to_dict(self) -> dict[str, Any]:
        """All fields but the exception as plain Python values, ready for JSON."""
        row = {name: getattr(self, name) for name in _FAILURE_FIELDS}
        row["stage"] = self.stage.value
        return row

    def to_json(self) -> str:
        r"""One line of JSON. Bytes of a file's name that are not UTF-8 are escaped (``\xe9``)."""
        return _to_json(self.to_dict())


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the server says of the model it serves.

    Attributes:
        name: Triton model name.
        versions: versions that are loaded, as Triton counts.
        input_type: ``"BYTES"`` or ``"UINT8"``: how images travel.
        max_batch_size: most images in one request.
        served: contract version, checkpoint, preprocessing and reference quantiles.
    """

    name: str
    versions: tuple[str, ...]
    input_type: str
    max_batch_size: int
    served: ServedModel

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain Python values, ready for JSON."""
        return dataclasses.asdict(self)


def percentile_text(percentile: float) -> str:
    """A percentile of 0..100 for people: whole, near the ends with a decimal.

    Only what beats no reference photo is ``0``, and only what beats all of them ``100``.
    """
    if 0.0 < percentile < 1.0 or 99.0 < percentile < 100.0:
        return f"{min(max(percentile, 0.1), 99.9):.1f}"
    return f"{percentile:.0f}"


def _to_json(fields: dict[str, Any]) -> str:
    texts = {name: writable(value) for name, value in fields.items() if isinstance(value, str)}
    return json.dumps({**fields, **texts}, ensure_ascii=False)


_SCORE_FIELDS = tuple(f.name for f in dataclasses.fields(ImageScore))
_FAILURE_FIELDS = tuple(f.name for f in dataclasses.fields(ImageFailure) if f.name != "error")
