"""Checkpoint to ONNX (needs torch): the FP32 graph that every other artefact is made from."""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from nima_build.checksums import write_artefacts
from nima_build.half import FP16_NAME, to_fp16
from nima_build.metadata import METADATA_NAME, ExportError, ModelMetadata
from nima_build.onnx_properties import set_properties
from nima_build.onnx_session import cpu_session, is_of_model
from nima_build.repository import INT8_NAME, ONNX_NAME, config_contents
from nima_client.contract import (
    NETWORK_MODEL,
    NUM_RATINGS,
    OUTPUT_DISTRIBUTION,
    OUTPUT_MEAN,
    OUTPUT_STD,
    PIXELS,
    PREPROCESS_MODEL,
    RATINGS,
)

if TYPE_CHECKING:
    from torch import nn

    from nima_client.preprocess import PreprocessSpec

OPSET = 18
"""Understood by every ONNX Runtime since 1.14 and every TensorRT since 8.6."""
SPECIFICATION_NAME = "preprocessing.json"
OUTPUTS = (OUTPUT_DISTRIBUTION, OUTPUT_MEAN, OUTPUT_STD)
MEAN_TOLERANCE = 1e-4
"""Largest difference of a mean rating between PyTorch and an FP32 graph."""

_CHECKED_BATCHES = (1, 3)


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        onnx_path: the FP32 graph.
        metadata: content of the ``model.json`` beside it.
        max_mean_difference: largest difference of a mean rating from PyTorch in the check.
        others: the FP16 and int8 graphs, where they were asked for.
        outdated: FP16 and int8 graphs of another checkpoint or preprocessing that lay there, and
            are gone.
    """

    onnx_path: Path
    metadata: ModelMetadata
    max_mean_difference: float
    others: tuple[Path, ...] = ()
    outdated: tuple[Path, ...] = ()


def export_checkpoint(
    checkpoint: Path, directory: Path, *, fp16: bool = False, calibration: Path | None = None
) -> Exported:
    """Export a checkpoint as ``model.onnx`` and ``model.json`` in ``directory``.

    All files are replaced together, and only after the new graph passed onnx.checker and agreed
    with PyTorch. FP16 and int8 graphs of another checkpoint or preprocessing, which would be served
    under this one's name, are removed.

    Args:
        checkpoint: folder with ``model.safetensors`` and ``checkpoint.json``.
        directory: where to write.
        fp16: write ``model.fp16.onnx`` too.
        calibration: folder of photos; writes ``model.int8.onnx`` too, calibrated on them.

    Raises:
        ExportError: unreadable checkpoint, wrong head, an operator ONNX lacks, a graph that
            disagrees with PyTorch, no photo to calibrate on, or a network that int8 is not for.
        OSError: the files could not be written.
    """
    files, done = _convert(checkpoint, directory, fp16, calibration)
    write_artefacts(files, None, done.outdated)
    return done


def export_to_repository(
    checkpoint: Path, repository: Path, *, fp16: bool = False, calibration: Path | None = None
) -> Exported:
    """Export a checkpoint into a model repository: graph, configs, specification, checksums.

    Arguments and errors are those of :func:`export_checkpoint`.
    """
    files, done = _convert(checkpoint, repository / NETWORK_MODEL / "1", fp16, calibration)
    # The DALI pipeline runs where nothing of this project is installed and reads a file.
    specification = json.dumps(done.metadata.preprocessing, indent=2) + "\n"
    files[repository / PREPROCESS_MODEL / "1" / SPECIFICATION_NAME] = specification.encode()
    files |= config_contents(repository, done.metadata)
    write_artefacts(files, repository, done.outdated)
    return done


def _convert(
    checkpoint: Path, directory: Path, fp16: bool, calibration: Path | None
) -> tuple[dict[Path, bytes], Exported]:
    """The files of an export into ``directory``, none of them written yet."""
    from nima_training.checkpoint import git_commit, load_checkpoint

    try:
        loaded = load_checkpoint(checkpoint)
    except Exception as error:  # safetensors, torch and our own reader each raise their own kinds
        # PyTorch lists every tensor that does not fit on a line of its own; the first will do.
        reason = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise ExportError(f"cannot read the checkpoint {checkpoint}: {reason}") from error
    meta, spec = loaded.meta, loaded.spec
    commit = git_commit() or ""
    model = to_onnx(
        loaded.model,
        spec,
        {
            "checkpoint_name": meta["name"],
            "checkpoint_sha256": meta["weights_sha256"],
            "git_commit": commit,
        },
    )
    content = model.SerializeToString()
    difference = check_against_pytorch(content, loaded.model, spec)
    others = {}
    if fp16:
        others[directory / FP16_NAME] = to_fp16(model).SerializeToString()
    if calibration is not None:
        from nima_build.int8 import calibration_pixels, to_int8

        quantised = to_int8(model, calibration_pixels(calibration, spec))
        others[directory / INT8_NAME] = quantised.SerializeToString()
    metadata = ModelMetadata(
        name=meta["name"],
        backbone=meta["backbone"],
        checkpoint_sha256=meta["weights_sha256"],
        onnx_sha256=hashlib.sha256(content).hexdigest(),
        preprocessing=spec.to_dict(),
        opset=OPSET,
        reference_set=meta["reference"]["set"],
        reference_quantiles=tuple(meta["reference"]["quantiles"]),
        git_commit=commit,
    )
    path = directory / ONNX_NAME
    files = {path: content, **others, directory / METADATA_NAME: metadata.to_json()}
    outdated = tuple(
        graph
        for graph in (directory / FP16_NAME, directory / INT8_NAME)
        if graph not in files and graph.is_file() and not is_of_model(graph, metadata)
    )
    return files, Exported(path, metadata, difference, tuple(others), outdated)


def to_onnx(
    network: nn.Module, spec: PreprocessSpec, properties: dict[str, str] | None = None
) -> onnx.ModelProto:
    """The scoring graph of a network as ONNX, checked by onnx.checker.

    ``PIXELS`` UINT8 ``[batch, S, S, 3]`` to ``DISTRIBUTION``, ``MEAN`` and ``STD`` with a dynamic
    batch. The preprocessing specification, the rating scale and ``properties`` become its
    ``metadata_props``, each prefixed ``nima.``.

    Raises:
        ExportError: the network's head is not 10 logits, or ONNX lacks one of its operators.
    """
    import torch

    from nima_build.graph import ScoringGraph

    size = spec.crop_size
    with torch.no_grad():
        try:
            logits = network.eval()(torch.zeros(2, 3, size, size))
        except Exception as error:
            raise ExportError(f"the network does not take {size}x{size} images: {error}") from error
    if tuple(logits.shape) != (2, NUM_RATINGS):
        raise ExportError(
            f"the network's head gives {list(logits.shape[1:])} values, "
            f"a NIMA network gives {NUM_RATINGS} logits"
        )
    buffer = io.BytesIO()
    pixels = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    names = (PIXELS, *OUTPUTS)
    try:
        with warnings.catch_warnings():
            # Tracing warns of every Python branch; check_against_pytorch judges the result.
            warnings.simplefilter("ignore")
            # The TorchScript exporter: a clean graph (GlobalAveragePool, not a gather over
            # strides) in a second, where the dynamo one takes twelve and needs onnxscript.
            torch.onnx.export(
                ScoringGraph(network, spec),
                (pixels,),
                buffer,  # type: ignore[arg-type]
                input_names=[PIXELS],
                output_names=list(OUTPUTS),
                opset_version=OPSET,
                dynamic_axes={name: {0: "batch"} for name in names},
                dynamo=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise ExportError(f"ONNX opset {OPSET} cannot express this network: {first}") from error
    model = onnx.load_from_string(buffer.getvalue())
    simplify_constants(model)
    set_properties(
        model,
        {
            "preprocessing": json.dumps(spec.to_dict(), sort_keys=True),
            "preprocessing_id": spec.id,
            "rating_scale": json.dumps(RATINGS),
            **(properties or {}),
        },
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def simplify_constants(model: onnx.ModelProto) -> None:
    """Turn ``Constant`` nodes into shared initializers and drop ``Identity`` nodes.

    The exporter writes the 0 and the 6 of every ReLU6 as nodes of their own and joins equal
    weights through Identity; with initializers alone the later passes (FP16, int8) see every
    constant in one place.
    """
    outputs = {output.name for output in model.graph.output}
    renamed: dict[str, str] = {}
    known: dict[bytes, str] = {}
    kept = []
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
        if node.op_type == "Identity" and node.output[0] not in outputs:
            renamed[node.output[0]] = node.input[0]
        elif node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = onnx.TensorProto()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = ""
            key = tensor.SerializeToString()
            if key not in known:
                known[key] = tensor.name = node.output[0]
                model.graph.initializer.append(tensor)
            renamed[node.output[0]] = known[key]
        else:
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)


def check_against_pytorch(content: bytes, network: nn.Module, spec: PreprocessSpec) -> float:
    """Compare a graph with the unfolded network in PyTorch on random and on flat pixels.

    Returns:
        Largest difference of a mean rating.

    Raises:
        ExportError: above :data:`MEAN_TOLERANCE`, or an output is not finite.
    """
    import torch

    from nima_build.graph import ScoringGraph

    session = cpu_session(content)
    reference = ScoringGraph(network, spec, fold=False)
    random = np.random.default_rng(0)
    largest = 0.0
    for batch in _CHECKED_BATCHES:
        shape = (batch, spec.crop_size, spec.crop_size, 3)
        pixels = random.integers(0, 256, shape, dtype=np.uint8)
        pixels[0] = 255
        expected = [output.numpy() for output in reference(torch.from_numpy(pixels))]
        actual = session.run(list(OUTPUTS), {PIXELS: pixels})
        # Both: ONNX Runtime may clip what is NaN in PyTorch, and NaN is never above a tolerance.
        if not all(np.isfinite(output).all() for output in (*expected, *actual)):
            raise ExportError("the network gives values that are not finite")
        difference = float(np.abs(expected[1] - actual[1]).max())
        if difference > MEAN_TOLERANCE or np.abs(expected[0] - actual[0]).max() > MEAN_TOLERANCE:
            raise ExportError(
                f"the exported graph disagrees with PyTorch: mean ratings differ by up to "
                f"{difference:.2g} (allowed {MEAN_TOLERANCE:g})"
            )
        largest = max(largest, difference)
    return largest
