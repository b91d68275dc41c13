"""Checkpoint to ONNX: the graph's contract, its agreement with PyTorch, and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from nima_build.checksums import check_checksums
from nima_build.cli.export import app
from nima_build.export import (
    ExportError,
    check_against_pytorch,
    export_checkpoint,
    export_to_repository,
    to_onnx,
)
from nima_build.half import STEM_CONVOLUTIONS, stem_length, to_fp16
from nima_build.metadata import ModelMetadata
from nima_build.onnx_properties import read_properties, set_properties
from nima_build.onnx_session import cpu_session, is_of_model
from nima_client._files import sha256_file
from nima_client.preprocess import PreprocessSpec, normalize, preprocess
from nima_training import distribution as moments
from nima_training.checkpoint import load_checkpoint
from nima_training.models import create_model

OUTPUTS = ["DISTRIBUTION", "MEAN", "STD"]
ROOT = Path(__file__).parents[2]
BUNDLED = ROOT / "training" / "checkpoints" / "nima_mobilenet"


def pytorch_scores(checkpoint: Path, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Distribution, mean and std by way of training's own code."""
    loaded = load_checkpoint(checkpoint)
    with torch.no_grad():
        logits = loaded.model(torch.from_numpy(normalize(pixels, loaded.spec)))
    p = moments.probabilities(logits)
    return p.numpy(), moments.mean(p).numpy()[:, None], moments.std(p).numpy()[:, None]


def test_graph_has_the_contract_of_the_network_step(exported: Path) -> None:
    model = onnx.load(exported / "model.onnx")

    def shape(value: onnx.ValueInfoProto) -> list[int | str]:
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    (entry,) = model.graph.input
    assert entry.name == "PIXELS"
    assert entry.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert shape(entry) == ["batch", 224, 224, 3]
    assert {output.name: shape(output) for output in model.graph.output} == {
        "DISTRIBUTION": ["batch", 10],
        "MEAN": ["batch", 1],
        "STD": ["batch", 1],
    }
    readers = [node.op_type for node in model.graph.node if "PIXELS" in node.input]
    assert readers == ["Cast"], "TensorRT takes a UINT8 input only when a Cast is its one reader"
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"BatchNormalization", "Constant", "Identity"}


def test_metadata_names_the_checkpoint_in_the_graph_and_beside_it(
    exported: Path, checkpoint: Path
) -> None:
    weights = sha256_file(checkpoint / "model.safetensors")
    properties = read_properties(onnx.load(exported / "model.onnx"))
    assert properties["checkpoint_sha256"] == weights
    assert json.loads(properties["preprocessing"]) == PreprocessSpec().to_dict()
    assert json.loads(properties["rating_scale"]) == list(range(1, 11))
    assert "git_commit" in properties
    metadata = ModelMetadata.load(exported / "model.json")
    assert metadata.checkpoint_sha256 == weights
    assert metadata.onnx_sha256 == sha256_file(exported / "model.onnx")
    assert metadata.spec == PreprocessSpec()
    assert len(metadata.reference_quantiles) == 101


def test_graph_agrees_with_training_code(
    exported: Path, checkpoint: Path, pixels: np.ndarray
) -> None:
    expected = pytorch_scores(checkpoint, pixels)
    actual = cpu_session(exported / "model.onnx").run(OUTPUTS, {"PIXELS": pixels})
    assert np.ptp(expected[1]) > 0.05, "the images must score differently, or this shows nothing"
    for name, want, got in zip(OUTPUTS, expected, actual, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(actual[0].sum(axis=1), 1.0, atol=1e-5)


def test_std_is_zero_not_nan_when_all_raters_agree() -> None:
    class Certain(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits = torch.full((10,), -1000.0)
            logits[6] = 1000.0
            return logits + 0.0 * images.mean(dim=(1, 2, 3)).unsqueeze(1)

    model = to_onnx(Certain(), PreprocessSpec())
    pixels = np.zeros((2, 224, 224, 3), np.uint8)
    for graph in (model, to_fp16(model)):
        _, mean, std = cpu_session(graph.SerializeToString()).run(OUTPUTS, {"PIXELS": pixels})
        assert mean.tolist() == [[7.0], [7.0]]
        assert std.tolist() == [[0.0], [0.0]]


def test_fp16_graph_keeps_softmax_and_moments_in_fp32(exported: Path, pixels: np.ndarray) -> None:
    half = to_fp16(onnx.load(exported / "model.onnx"))
    inferred = onnx.shape_inference.infer_shapes(half, strict_mode=True)
    types = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    types |= {v.name: v.type.tensor_type.elem_type for v in inferred.graph.output}
    kinds = [types[n.output[0]] for n in inferred.graph.node if n.op_type in ("Conv", "Gemm")]
    # The first two convolutions of a MobileNet lose too many digits (nima_build.half).
    assert stem_length(onnx.load(exported / "model.onnx").graph.node) > 0
    assert kinds[:2] == [onnx.TensorProto.FLOAT] * 2
    assert set(kinds[2:]) == {onnx.TensorProto.FLOAT16}
    operators = [node.op_type for node in inferred.graph.node]
    tail = inferred.graph.node[operators.index("Softmax") :]
    assert {types[name] for node in tail for name in node.output} == {onnx.TensorProto.FLOAT}

    full = cpu_session(exported / "model.onnx").run(OUTPUTS, {"PIXELS": pixels})
    rounded = cpu_session(half.SerializeToString()).run(OUTPUTS, {"PIXELS": pixels})
    # Random weights amplify rounding; `nima verify` holds the trained model to 0.01.
    assert np.abs(full[1] - rounded[1]).max() < 0.1
    assert np.abs(full[0] - rounded[0]).max() > 0, "equal to the bit: nothing ran in FP16"


def test_wrong_head_is_refused() -> None:
    class FiveClasses(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=(2, 3)).repeat(1, 2)[:, :5]

    with pytest.raises(ExportError, match=r"head gives \[5\]"):
        to_onnx(FiveClasses(), PreprocessSpec())


def test_an_infinite_weight_that_onnx_runtime_clips_is_refused() -> None:
    spec = PreprocessSpec(resize_size=32, crop_size=32)
    network = create_model("mobilenet_v2", "none", 0.0).eval()
    with torch.no_grad():
        next(network.parameters())[0, 0, 0, 0] = torch.inf
    content = to_onnx(network, spec).SerializeToString()
    with pytest.raises(ExportError, match="values that are not finite"):
        check_against_pytorch(content, network, spec)


def test_unsupported_operator_is_refused() -> None:
    class Eigen(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            square = images.mean(dim=1)[:, :10, :10]
            return torch.linalg.eigvalsh(square + square.transpose(1, 2))

    with pytest.raises(ExportError, match="cannot express"):
        to_onnx(Eigen(), PreprocessSpec())


def test_unreadable_checkpoint_leaves_the_previous_export(
    checkpoint: Path, exported: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    shutil.copytree(exported, target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    damaged = tmp_path / "damaged"
    shutil.copytree(checkpoint, damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ExportError, match="cannot read the checkpoint"):
        export_checkpoint(damaged, target)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before

    result = CliRunner().invoke(app, [str(damaged), "-o", str(target)])
    assert result.exit_code == 1
    assert result.output.startswith("nima export: cannot read the checkpoint")
    assert result.output.count("\n") == 1


def test_checkpoint_with_another_head_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    """Five ratings instead of ten, in a checkpoint that is whole otherwise."""
    from safetensors.torch import load_file, save_file

    copy = Path(shutil.copytree(checkpoint, tmp_path / "five"))
    state = load_file(copy / "model.safetensors")
    head = {name: value[:5].contiguous() for name, value in state.items() if "classifier" in name}
    assert head
    save_file({**state, **head}, copy / "model.safetensors")
    meta = json.loads((copy / "checkpoint.json").read_text())
    meta["weights_sha256"] = sha256_file(copy / "model.safetensors")
    (copy / "checkpoint.json").write_text(json.dumps(meta))
    result = CliRunner().invoke(app, [str(copy), "-o", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert result.output.startswith("nima export: cannot read the checkpoint")
    assert "size mismatch for classifier.1." in result.output
    assert result.output.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_bundled_where_no_checkpoint_is_says_where_it_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in an installed wheel, which has none.
    monkeypatch.setattr("nima_build.paths.BUNDLED_CHECKPOINT", tmp_path / "checkpoints")
    result = CliRunner().invoke(app, ["--bundled", "--output", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "comes with a checkout, not with an installed package" in result.output
    assert not (tmp_path / "out").exists()


def test_committed_graph_belongs_to_the_committed_checkpoint(pixels: np.ndarray) -> None:
    network = ROOT / "model_repository" / "nima_network" / "1"
    if not BUNDLED.is_dir():
        pytest.skip("no bundled checkpoint in this tree")
    metadata = ModelMetadata.load(network / "model.json")
    weights = BUNDLED / "model.safetensors"
    again = "the export is stale: run `make model`"
    assert metadata.checkpoint_sha256 == sha256_file(weights), again
    assert metadata.onnx_sha256 == sha256_file(network / "model.onnx"), again
    properties = read_properties(onnx.load(network / "model.onnx"))
    assert properties["checkpoint_sha256"] == metadata.checkpoint_sha256, again
    expected = pytorch_scores(BUNDLED, pixels)
    actual = cpu_session(network / "model.onnx").run(OUTPUTS, {"PIXELS": pixels})
    for want, got in zip(expected, actual, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4)
    total = sum(path.stat().st_size for folder in (BUNDLED, network) for path in folder.iterdir())
    assert total <= 25e6, "checkpoint and ONNX together may take 25 MB"


def test_int8_graph_is_quantised_and_close(
    checkpoint: Path, exported: Path, tmp_path: Path
) -> None:
    from skimage import data

    photos = tmp_path / "photos"
    photos.mkdir()
    pictures = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    for index, pixels in enumerate(pictures):
        Image.fromarray(pixels).resize((320, 240)).save(photos / f"{index}.jpg")
    (photos / "notes.txt").write_text("not a photo")
    done = export_checkpoint(checkpoint, tmp_path / "out", fp16=True, calibration=photos)
    assert [path.name for path in done.others] == ["model.fp16.onnx", "model.int8.onnx"]
    path, source = done.others[1], exported / "model.onnx"
    model = onnx.load(path)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    inputs = [node.input[0] for node in convolutions[STEM_CONVOLUTIONS:]]
    dequantised = {
        node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"
    }
    assert len(inputs) > 20
    assert set(inputs) <= dequantised, "every convolution behind the stem reads int8"
    assert read_properties(model) == read_properties(onnx.load(source))
    assert path.stat().st_size < 0.4 * source.stat().st_size
    batch = np.stack([preprocess(p.read_bytes(), PreprocessSpec()) for p in photos.glob("*.jpg")])
    full = cpu_session(source).run(OUTPUTS, {"PIXELS": batch})
    small = cpu_session(path).run(OUTPUTS, {"PIXELS": batch})
    # Random weights amplify rounding; `nima verify` holds the trained model to 0.05.
    assert 0 < np.abs(full[1] - small[1]).max() < 1.0


@pytest.mark.parametrize("changed", ["checkpoint_sha256", "preprocessing_id"])
def test_graphs_of_another_checkpoint_do_not_outlive_it(
    checkpoint: Path, exported: Path, tmp_path: Path, changed: str
) -> None:
    """Left there, `nima serve --precision int8` would serve the old network by the new name."""
    other = onnx.load(exported / "model.onnx")
    properties = read_properties(other)
    del other.metadata_props[:]
    set_properties(other, properties | {changed: "0" * 16})
    network = tmp_path / "models" / "nima_network" / "1"
    network.mkdir(parents=True)
    stale = [network / "model.fp16.onnx", network / "model.int8.onnx"]
    for path in stale:
        path.write_bytes(other.SerializeToString())
    done = export_to_repository(checkpoint, tmp_path / "models")
    assert list(done.outdated) == stale
    assert not any(path.exists() for path in stale)
    assert check_checksums(tmp_path / "models") > 0

    # The same checkpoint once more: what was made from it stays.
    stale[1].write_bytes((exported / "model.onnx").read_bytes())
    assert is_of_model(stale[1], done.metadata)
    done = export_to_repository(checkpoint, tmp_path / "models")
    assert done.outdated == ()
    assert stale[1].exists()
    assert "model.int8.onnx" in (tmp_path / "models" / "SHA256SUMS").read_text()

    stale[1].write_bytes(b"not a graph at all")
    result = CliRunner().invoke(app, [str(checkpoint), "-o", str(network)])
    assert result.exit_code == 0, result.output
    assert (
        "removed, it was of another checkpoint or preprocessing (--int8 PHOTOS makes it anew)"
        in result.output
    )
    assert not stale[1].exists()


def test_a_repository_is_exported_into_and_a_wrong_one_is_refused(
    checkpoint: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = Path(shutil.copytree(repository, tmp_path / "models"))
    shutil.rmtree(models / "nima_network" / "1")
    (models / "SHA256SUMS").unlink()
    done = CliRunner().invoke(app, [str(checkpoint), "-o", str(models)])
    assert done.exit_code == 0, done.output
    assert check_checksums(models) > 0
    assert (models / "nima_network" / "1" / "model.onnx").is_file()
    assert not (models / "model.onnx").exists()

    monkeypatch.setenv("NIMA_MODEL_REPOSITORY", str(tmp_path / "modles"))
    done = CliRunner().invoke(app, [str(checkpoint)])
    assert done.exit_code == 1
    assert "modles is no model repository" in done.output
    assert not (tmp_path / "modles").exists()


def test_int8_without_photos_leaves_the_previous_export(
    checkpoint: Path, exported: Path, tmp_path: Path
) -> None:
    target = Path(shutil.copytree(exported, tmp_path / "out"))
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    (tmp_path / "photos").mkdir()
    arguments = [str(checkpoint), "-o", str(target), "--int8", str(tmp_path / "photos")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert result.output.startswith("nima export: no photo in")
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
