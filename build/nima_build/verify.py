"""Every stage of the parity gate over one set of photos; see :mod:`nima_build.parity`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nima_build.engine_manifest import PLAN_NAME, check_engine
from nima_build.golden import Golden, GoldenScore, load_golden, unchanged
from nima_build.metadata import METADATA_NAME, ArtefactError, ModelMetadata
from nima_build.parity import (
    NoReference,
    Report,
    Scorer,
    StageResult,
    compare,
    means,
    onnx_scorer,
    pytorch_scorer,
    read_pixels,
    triton_scores,
)
from nima_build.repository import INT8_NAME, ONNX_NAME
from nima_client._connection import TLS
from nima_client._files import sha256_file
from nima_client._package import PACKAGE_NAME, REBUILD
from nima_client.contract import NUM_RATINGS, RATINGS
from nima_client.errors import NimaError


def verify(
    network: Path,
    photos: Sequence[Path],
    *,
    checkpoint: Path | None = None,
    url: str | None = None,
    tls: TLS | None = None,
    headers: Mapping[str, str] | None = None,
) -> Report:
    """Compare every artefact that is there with the reference.

    The reference is PyTorch on ``checkpoint``; without it (no torch where one serves) the FP32
    graph, which export compared with PyTorch.

    Args:
        network: folder with ``model.onnx``, ``model.json`` and what was built from them.
        photos: image files.
        checkpoint: folder of the checkpoint; None does without.
        url: ``host:port`` of a running server to compare too.
        tls: its encryption; None speaks plain text.
        headers: metadata for its calls.

    Raises:
        ArtefactError: no graph, a graph that is not the one its metadata names, a checkpoint that
            cannot be read or that it was not exported from, or a photo that cannot be read.
        OSError: a file of ``tls`` cannot be read.
    """
    metadata = ModelMetadata.load(network / METADATA_NAME)
    graph = network / ONNX_NAME
    if not graph.is_file() or sha256_file(graph) != metadata.onnx_sha256:
        raise ArtefactError(f"{graph} is not what {METADATA_NAME} names: run `nima export` again")
    names = [path.name for path in photos]
    pixels = read_pixels(photos, metadata.spec)
    stages: list[StageResult] = []
    reference = "onnx-fp32"
    expected = onnx_scorer(graph)(pixels)
    try:
        if checkpoint is None:
            raise NoReference("no checkpoint was named")
        full = expected
        expected = pytorch_scorer(checkpoint, metadata)(pixels)
        reference = "pytorch"
        stages.append(compare("onnx-fp32", names, expected, full))
    except NoReference as error:
        stages.append(StageResult("onnx-fp32", "skip", note=f"it is the reference: {error}"))
    stages.insert(0, _golden_stage(metadata, photos, expected))
    stages.append(_fp16_stage(graph, names, pixels, expected))
    stages.append(_pytorch_fp16_stage(graph, checkpoint, metadata, names, pixels, expected))
    stages.append(_int8_stage(network, metadata, names, pixels, expected))
    stages.append(_tensorrt_stage(network, metadata, names, pixels, expected))
    stages.append(_inductor_stage(network, metadata, names, pixels, expected))
    if url is None:
        stages.append(StageResult("triton", "skip", note="no server named (--url)"))
    else:
        stages.append(_triton_stage(url, tls, headers, photos, expected))
    return Report(metadata.checkpoint_sha256, metadata.spec.id, reference, names, stages)


def make_golden(network: Path, photos: Sequence[Path], checkpoint: Path) -> Golden:
    """Golden scores of a checkpoint, computed by PyTorch.

    Raises:
        ArtefactError: no torch, or another checkpoint than the graph's.
    """
    metadata = ModelMetadata.load(network / METADATA_NAME)
    distributions = pytorch_scorer(checkpoint, metadata)(read_pixels(photos, metadata.spec))
    averages = means(distributions)
    ratings = np.asarray(RATINGS, np.float64)
    scores = []
    for path, row, mean in zip(photos, distributions, averages, strict=True):
        std = float(np.sqrt((row * np.square(ratings - mean)).sum()))
        rounded = tuple(round(float(p), 7) for p in row)
        digest = sha256_file(path)
        scores.append(GoldenScore(path.name, digest, round(float(mean), 5), round(std, 5), rounded))
    return Golden(metadata.checkpoint_sha256, metadata.spec.id, tuple(scores))


def _golden_stage(
    metadata: ModelMetadata, photos: Sequence[Path], expected: npt.NDArray[Any]
) -> StageResult:
    golden = load_golden()
    if golden is None or golden.checkpoint_sha256 != metadata.checkpoint_sha256:
        return StageResult("golden", "skip", note="no golden scores of this checkpoint")
    if golden.preprocessing_id != metadata.spec.id:
        return StageResult("golden", "fail", note="the preprocessing changed: regenerate them")
    known = unchanged(golden, list(photos))
    rows = [index for index, path in enumerate(photos) if path in known]
    if not rows:
        return StageResult("golden", "skip", note="none of these photos has a golden score")
    scores = [known[photos[index]] for index in rows]
    wanted = np.array([score.distribution for score in scores])
    names = [score.name for score in scores]
    return compare("golden", names, wanted, expected[rows], "the reference against committed ones")


def _fp16_stage(
    graph: Path, names: list[str], pixels: npt.NDArray[Any], expected: npt.NDArray[Any]
) -> StageResult:
    import onnx

    from nima_build.half import to_fp16

    half = to_fp16(onnx.load(graph)).SerializeToString()
    note = "FP16 weights (a CPU computes between the casts in FP32)"
    return compare("onnx-fp16", names, expected, onnx_scorer(half)(pixels), note)


def _pytorch_fp16_stage(
    graph: Path,
    checkpoint: Path | None,
    metadata: ModelMetadata,
    names: list[str],
    pixels: npt.NDArray[Any],
    expected: npt.NDArray[Any],
) -> StageResult:
    import onnx

    from nima_build.half import STEM_CONVOLUTIONS, stem_length

    try:
        if checkpoint is None:
            raise NoReference("no checkpoint was named")
        kept = STEM_CONVOLUTIONS if stem_length(onnx.load(graph).graph.node) else 0
        scorer = pytorch_scorer(checkpoint, metadata, half=kept)
    except NoReference as error:
        return StageResult("pytorch-fp16", "skip", note=str(error))
    note = "FP16 weights and activations, as TensorRT is asked for"
    return compare("pytorch-fp16", names, expected, scorer(pixels), note)


def _int8_stage(
    network: Path,
    metadata: ModelMetadata,
    names: list[str],
    pixels: npt.NDArray[Any],
    expected: npt.NDArray[Any],
) -> StageResult:
    from nima_build.onnx_session import is_of_model

    path = network / INT8_NAME
    if not path.is_file():
        return StageResult("onnx-int8", "skip", note="not built (`nima export --int8`)")
    if not is_of_model(path, metadata):
        note = f"{INT8_NAME} is of another checkpoint or preprocessing"
        return StageResult("onnx-int8", "fail", note=note)
    return compare("onnx-int8", names, expected, onnx_scorer(path)(pixels))


def _tensorrt_stage(
    network: Path,
    metadata: ModelMetadata,
    names: list[str],
    pixels: npt.NDArray[Any],
    expected: npt.NDArray[Any],
) -> StageResult:
    from nima_build.engine import check_engine_here

    plan = network / PLAN_NAME

    def check() -> str:
        # Without a GPU this much can be said of it.
        check_engine(plan, onnx_sha256=metadata.onnx_sha256)
        check_engine_here(plan, network / ONNX_NAME)
        return ""

    if not plan.is_file():
        return StageResult("tensorrt", "skip", note="no engine (`nima build --target tensorrt`)")
    return _built_stage(
        "tensorrt", check, lambda _note: _engine_scorer(plan), names, pixels, expected
    )


def _engine_scorer(plan: Path) -> Scorer:
    from nima_build.engine_runner import EngineRunner

    runner = EngineRunner(plan)
    return lambda pixels: runner.run(pixels)[0]


def _inductor_stage(
    network: Path,
    metadata: ModelMetadata,
    names: list[str],
    pixels: npt.NDArray[Any],
    expected: npt.NDArray[Any],
) -> StageResult:
    from nima_build.inductor import check_package_here, check_package_of, open_package

    package = network / PACKAGE_NAME

    def check() -> str:
        # Without torch or a GPU this much can be said of it.
        device = check_package_of(package, metadata).device
        check_package_here(package, metadata, device=device)
        return device

    def scorer(device: str) -> Scorer:
        compiled = open_package(package, device)
        return lambda images: compiled.score(images)[:, :NUM_RATINGS]

    if not package.is_file():
        return StageResult("inductor", "skip", note=f"no package (`{REBUILD}`)")
    return _built_stage("inductor", check, scorer, names, pixels, expected)


def _built_stage(
    stage: str,
    check: Callable[[], str],
    scorer: Callable[[str], Scorer],
    names: list[str],
    pixels: npt.NDArray[Any],
    expected: npt.NDArray[Any],
) -> StageResult:
    """What was built for one machine: it fails where it does not fit, and is skipped on another.

    ``check`` refuses what does not fit (ArtefactError) or cannot be run here (EngineError), or
    returns a note; ``scorer`` is given the note and opens it.
    """
    from nima_build.tensorrt_api import EngineError

    try:
        note = check()
    except ArtefactError as error:
        return StageResult(stage, "fail", note=str(error))
    except EngineError as error:
        return StageResult(stage, "skip", note=str(error))
    try:
        actual = scorer(note)(pixels)
    except (ArtefactError, EngineError) as error:
        return StageResult(stage, "fail", note=str(error))
    return compare(stage, names, expected, actual, note)


def _triton_stage(
    url: str,
    tls: TLS | None,
    headers: Mapping[str, str] | None,
    photos: Sequence[Path],
    expected: npt.NDArray[Any],
) -> StageResult:
    from tritonclient.utils import InferenceServerException

    try:
        stage, actual, note = triton_scores(url, photos, tls, headers)
    except (NimaError, InferenceServerException) as error:
        return StageResult("triton", "fail", note=f"{url}: {error}")
    return compare(stage, [path.name for path in photos], expected, actual, note)
