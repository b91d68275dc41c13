"""The parity gate: the same photos through every runtime, compared with PyTorch.

A stage is a way to score: the committed golden scores, ONNX FP32, ONNX FP16, int8, a TensorRT
engine, a package of PyTorch, a running Triton. Each has a tolerance on the mean rating and one on
the earth mover's distance between distributions (r = 2, Talebi & Milanfar 2017, eq. 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nima_build.metadata import ArtefactError, ModelMetadata
from nima_build.triton_client import triton_client
from nima_client._os_errors import reason
from nima_client.contract import NETWORK_MODEL, PIXELS, RATINGS
from nima_client.preprocess import PreprocessSpec, preprocess

if TYPE_CHECKING:
    import nima_client


class NoReference(ArtefactError):
    """Nothing of PyTorch to compare with: it is not installed, or no checkpoint was named."""


Scorer = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
"""Pixels uint8 ``[B, S, S, 3]`` to distributions ``[B, 10]``."""


@dataclass(frozen=True)
class Tolerance:
    """Largest difference allowed: of a mean rating, and in EMD."""

    mean: float
    emd: float


TOLERANCES = {
    # JPEG decoders of other versions differ by 1/255 here and there.
    "golden": Tolerance(1e-3, 5e-4),
    "onnx-fp32": Tolerance(1e-4, 1e-4),
    "onnx-fp16": Tolerance(0.01, 0.005),
    "pytorch-fp16": Tolerance(0.01, 0.005),
    "onnx-int8": Tolerance(0.05, 0.02),
    "tensorrt": Tolerance(0.01, 0.005),
    "inductor": Tolerance(0.01, 0.005),
    "triton": Tolerance(1e-4, 1e-4),
    "triton-int8": Tolerance(0.05, 0.02),
    # FP16, and JPEG decoded and resized on the GPU.
    "triton-gpu": Tolerance(0.03, 0.01),
}


@dataclass(frozen=True)
class StageResult:
    """How one stage compares with the reference.

    Attributes:
        stage: key of :data:`TOLERANCES`.
        status: ``pass``, ``fail`` or ``skip``.
        photos: photos compared.
        mean_difference: largest difference of a mean rating; None when skipped.
        emd: largest EMD; None when skipped.
        tolerance: what was allowed; None when skipped.
        worst: name of the photo with the largest difference of the mean.
        note: why it was skipped, or what it ran.
    """

    stage: str
    status: str
    photos: int = 0
    mean_difference: float | None = None
    emd: float | None = None
    tolerance: Tolerance | None = None
    worst: str = ""
    note: str = ""


@dataclass(frozen=True)
class Report:
    """Outcome of the gate."""

    checkpoint_sha256: str
    preprocessing_id: str
    reference: str
    photos: list[str]
    stages: list[StageResult]

    @property
    def passed(self) -> bool:
        """No stage failed, and at least one was compared."""
        states = [stage.status for stage in self.stages]
        return "fail" not in states and "pass" in states

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "passed": self.passed}


def emd(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Earth mover's distance of each pair of distributions ``[N, 10]``, r = 2, in 0..1."""
    difference = np.cumsum(first, axis=1) - np.cumsum(second, axis=1)
    distance: npt.NDArray[Any] = np.sqrt(np.square(difference).mean(axis=1))
    return distance


def means(distributions: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Mean rating of each distribution, float64 ``[N]``."""
    return distributions.astype(np.float64) @ np.asarray(RATINGS, np.float64)


def compare(
    stage: str,
    names: Sequence[str],
    expected: npt.NDArray[Any],
    actual: npt.NDArray[Any],
    note: str = "",
) -> StageResult:
    """Judge the distributions ``[N, 10]`` of a stage against those of the reference."""
    tolerance = TOLERANCES[stage]
    if not np.isfinite(actual).all():
        return StageResult(stage, "fail", len(names), tolerance=tolerance, note="not finite")
    differences = np.abs(means(actual) - means(expected))
    distance = float(emd(actual, expected).max())
    worst = int(differences.argmax())
    passed = differences[worst] <= tolerance.mean and distance <= tolerance.emd
    return StageResult(
        stage,
        "pass" if passed else "fail",
        len(names),
        float(differences[worst]),
        distance,
        tolerance,
        names[worst],
        note,
    )


def read_pixels(photos: Sequence[Path], spec: PreprocessSpec) -> npt.NDArray[Any]:
    """Preprocess photos: uint8 ``[N, S, S, 3]``.

    Raises:
        ArtefactError: a photo cannot be read or decoded; a gate has no use for a missing one.
    """
    pixels = []
    for path in photos:
        try:
            pixels.append(preprocess(path.read_bytes(), spec))
        except (OSError, ValueError) as error:
            raise ArtefactError(f"cannot score {path}: {reason(error)}") from None
    return np.stack(pixels)


def onnx_scorer(model: bytes | Path) -> Scorer:
    """ONNX Runtime on the CPU, one image at a time, as the server runs it."""
    from nima_build.onnx_session import cpu_session

    session = cpu_session(model)

    def score(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.concatenate(
            [session.run(["DISTRIBUTION"], {PIXELS: image[None]})[0] for image in pixels]
        )

    return score


def pytorch_scorer(checkpoint: Path, metadata: ModelMetadata, *, half: int | None = None) -> Scorer:
    """Training's own code on the checkpoint the graph was exported from.

    Args:
        checkpoint: folder of the checkpoint.
        metadata: of the graph; must name the same weights.
        half: round weights and activations to FP16 as a TensorRT engine does, but for so many of
            the first convolutions; None rounds nothing. ONNX Runtime on a CPU rounds the weights
            alone.

    Raises:
        NoReference: it is not installed.
        ArtefactError: no such checkpoint, or another one.
    """
    try:
        import torch

        from nima_build.graph import ScoringGraph, load_exported
        from nima_training import distribution
    except ModuleNotFoundError as error:
        raise NoReference(f"PyTorch is not installed ({error.name})") from None
    from nima_client.preprocess import normalize

    loaded = load_exported(checkpoint, metadata)
    network = loaded.model
    if half is not None:
        network = ScoringGraph(loaded.model, loaded.spec).network
        _round_to_half(network, half)

    def score(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        rows = []
        with torch.no_grad():
            for image in pixels:
                logits = network(torch.from_numpy(normalize(image[None], loaded.spec)))
                rows.append(distribution.probabilities(logits).numpy())
        return np.concatenate(rows)

    return score


def _round_to_half(network: Any, kept: int) -> None:
    """Round the weights and the output of every layer but the first ``kept`` convolutions."""
    import torch

    def round_output(_module: Any, _inputs: Any, output: Any) -> Any:
        return output.half().float()

    convolutions = 0
    for module in network.modules():
        if next(module.children(), None) is not None:
            continue
        convolutions += isinstance(module, torch.nn.Conv2d)
        if convolutions > kept:
            module.half().float()
            module.register_forward_hook(round_output)


def triton_scores(
    url: str,
    photos: Sequence[Path],
    tls: nima_client.TLS | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[str, npt.NDArray[Any], str]:
    """Stage name, distributions and a note of a running server.

    Raises:
        NimaError: unreachable, or it refused a photo.
        InferenceServerException: it does not tell the network's config.
        OSError: a file of ``tls`` cannot be read.
    """
    import nima_client

    with nima_client.NimaClient(url, tls=tls, headers=headers) as client:
        served = client.model_info().served
        scores = client.score([path.read_bytes() for path in photos])
    with triton_client(url, tls) as server:
        config = server.get_model_config(NETWORK_MODEL, headers=dict(headers or {})).config
    stage = "triton"
    if config.platform == "tensorrt_plan" or config.default_model_filename == "gpu_model.py":
        stage = "triton-gpu"
    elif served.precision == "int8":
        stage = "triton-int8"
    distributions = np.array([score.distribution for score in scores], np.float64)
    return stage, distributions, f"{url}, {config.platform or config.backend}"
