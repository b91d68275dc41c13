"""The wire contract: every name, limit and code that server and clients must agree on.

This module is the only home of these facts. It imports nothing beyond the standard library, so the
server's Python models, the build and the client can all read it.

Ensemble ``nima`` (batch ``B`` up to :data:`MAX_BATCH_SIZE`):

======================  =====  =======  ====================================================
tensor                  type   shape    meaning
======================  =====  =======  ====================================================
in ``IMAGE``            BYTES  [B, 1]   one encoded image file per row
out ``DISTRIBUTION``    FP32   [B, 10]  probabilities of the ratings 1..10, summing to 1
out ``MEAN``            FP32   [B, 1]   mean rating, 1..10
out ``STD``             FP32   [B, 1]   standard deviation of the rating, 0..4.5
======================  =====  =======  ====================================================
"""

from __future__ import annotations

import enum
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

CONTRACT_VERSION = 1
"""Raised when a client written for the old contract would misread the new one."""

MODEL_NAME = "nima"
PREPROCESS_MODEL = "nima_preprocess"
NETWORK_MODEL = "nima_network"

INPUT_IMAGE = "IMAGE"
PIXELS = "PIXELS"
OUTPUT_DISTRIBUTION = "DISTRIBUTION"
OUTPUT_MEAN = "MEAN"
OUTPUT_STD = "STD"

RATINGS: tuple[int, ...] = tuple(range(1, 11))
"""The rating scale of AVA (Murray et al., CVPR 2012): whole numbers 1 (worst) to 10 (best)."""
NUM_RATINGS = len(RATINGS)

MAX_BATCH_SIZE = 32
"""Most images in one request; the same in every profile."""

DEFAULT_MAX_BYTES = 64 * 1024 * 1024
"""Largest encoded image the server takes, in bytes (model parameter ``max_bytes``)."""
DEFAULT_MAX_PIXELS = 100_000_000
"""Largest image the server decodes, in pixels (model parameter ``max_pixels``)."""

LOGGED_ID_CHARACTERS = 128
"""So much of a request's id is in the server's log: ours have two dozen characters, but a caller
may send megabytes, each of whose bytes may take seven there."""

PROFILES: tuple[str, ...] = ("default", "dali", "cpu", "embedded", "embedded-gpu")
"""Serving profiles; every one loads the same three models under another config."""


class RejectionCode(str, enum.Enum):
    """Why the server refused one image."""

    UNDECODABLE = "UNDECODABLE"
    """The bytes claim a known format but cannot be decoded (truncated, corrupt)."""
    TOO_LARGE = "TOO_LARGE"
    """More bytes or pixels than the server's limits allow."""
    EMPTY = "EMPTY"
    """No bytes at all."""
    UNSUPPORTED = "UNSUPPORTED"
    """Not an image, or of a format the server does not decode."""


@dataclass(frozen=True)
class Rejection:
    """One refused image of a request.

    Attributes:
        index: position of the image in the request, from 0.
        code: machine-readable reason.
        detail: one line for a person.
    """

    index: int
    code: RejectionCode
    detail: str


_REJECTION_MARKER = "NIMA_REJECTED "
# gRPC carries the status text in a header; 32 rejections of this length stay well below its 8 KiB.
_MAX_DETAIL = 120


def format_rejections(rejections: Iterable[Rejection]) -> str:
    """Status text of an INVALID_ARGUMENT answer that names every refused image.

    Args:
        rejections: at least one rejection.

    Returns:
        ASCII text that :func:`parse_rejections` reads back; details are cut at 120 characters.
    """
    rows = [
        {"index": r.index, "code": r.code.value, "detail": r.detail[:_MAX_DETAIL]}
        for r in rejections
    ]
    return _REJECTION_MARKER + json.dumps(rows, separators=(",", ":"))


def parse_rejections(message: str) -> tuple[Rejection, ...]:
    """Read the rejections out of a status text.

    Triton prefixes (``in ensemble 'nima', …``) and suffixes the text, so the JSON is looked for
    behind its marker.

    Returns:
        The rejections by index; empty when the text carries none (another server, another error).
    """
    start = message.find(_REJECTION_MARKER)
    if start < 0:
        return ()
    try:
        rows, _ = json.JSONDecoder().raw_decode(message, start + len(_REJECTION_MARKER))
        found = [
            Rejection(int(row["index"]), RejectionCode(row["code"]), str(row["detail"]))
            for row in rows
        ]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return ()
    return tuple(sorted(found, key=lambda r: r.index))


class ContractError(ValueError):
    """The model configuration does not describe a NIMA server of this contract."""


_COUNTS = ("request_size", "instances")


@dataclass(frozen=True)
class ServedModel:
    """What a server says of the model it serves; read once at connect.

    These facts travel as string ``parameters`` of the ensemble's model config (Triton's ModelConfig
    call), because that reaches a client the same way in every profile, stock images included.

    Attributes:
        contract_version: :data:`CONTRACT_VERSION` of the repository that is served.
        checkpoint_name: name of the checkpoint, e.g. ``nima_mobilenet``.
        checkpoint_sha256: SHA-256 of its weights file, hex.
        preprocessing_id: identity of the preprocessing specification.
        reference_set: the photos whose predicted means gave ``reference_quantiles``.
        reference_quantiles: 101 mean ratings, the 0th to 100th percentile of that set, ascending.
        precision: ``fp32`` or ``int8``, how a CPU runs the network; empty where the server's engine
            decides (TensorRT: FP16).
        request_size: images in a request that suit this server best, when it has many to score.
        instances: requests that it works on at once; fewer would leave some of it idle.
    """

    contract_version: int
    checkpoint_name: str
    checkpoint_sha256: str
    preprocessing_id: str
    reference_set: str = ""
    reference_quantiles: tuple[float, ...] = field(default=(), repr=False)
    precision: str = ""
    request_size: int = 1
    instances: int = 1

    def to_parameters(self) -> dict[str, str]:
        """The facts as string parameters of a Triton model config."""
        more = {"precision": self.precision} if self.precision else {}
        for name in _COUNTS:
            if (count := getattr(self, name)) != 1:
                more[name] = str(count)
        return {
            "contract_version": str(self.contract_version),
            "checkpoint_name": self.checkpoint_name,
            "checkpoint_sha256": self.checkpoint_sha256,
            "preprocessing_id": self.preprocessing_id,
            "reference_set": self.reference_set,
            "reference_quantiles": json.dumps([round(q, 6) for q in self.reference_quantiles]),
            **more,
        }

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> ServedModel:
        """Read the facts back.

        Raises:
            ContractError: a required parameter is missing or unreadable.
        """
        try:
            given = json.loads(parameters.get("reference_quantiles") or "[]")
            quantiles = tuple(float(q) for q in given)
            if not all(low <= high for low, high in itertools.pairwise(quantiles)):
                raise ValueError("the reference quantiles do not ascend")
            counts = {name: int(parameters.get(name) or 1) for name in _COUNTS}
            if min(counts.values()) < 1:
                raise ValueError(f"a count is below 1: {counts}")
            return cls(
                contract_version=int(parameters["contract_version"]),
                checkpoint_name=parameters["checkpoint_name"],
                checkpoint_sha256=parameters["checkpoint_sha256"],
                preprocessing_id=parameters["preprocessing_id"],
                reference_set=parameters.get("reference_set", ""),
                reference_quantiles=quantiles,
                precision=parameters.get("precision", ""),
                **counts,
            )
        except KeyError as error:
            raise ContractError(
                f"the model config has no parameter {error.args[0]!r}: "
                "this is not a NIMA model repository, or an unrendered one"
            ) from error
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise ContractError(f"unreadable parameters in the model config: {error}") from error

    def percentile(self, mean: float) -> float | None:
        """Percentile (0..100) of a mean rating among the reference set, or None without one.

        Linear interpolation between the quantiles; 0 below the lowest and 100 above the highest.
        """
        return percentile_of(mean, self.reference_quantiles)


def percentile_of(value: float, quantiles: Sequence[float]) -> float | None:
    """Percentile (0..100) of ``value`` given evenly spaced ascending ``quantiles``."""
    if len(quantiles) < 2:
        return None
    if value <= quantiles[0]:
        return 0.0
    if value >= quantiles[-1]:
        return 100.0
    low, high = 0, len(quantiles) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if quantiles[middle] <= value:
            low = middle
        else:
            high = middle
    span = quantiles[high] - quantiles[low]
    inside = (value - quantiles[low]) / span if span > 0 else 0.0
    return 100.0 * (low + inside) / (len(quantiles) - 1)
