"""Published weights: TFLite against its interpreter, Keras HDF5 and IQA-PyTorch layouts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from nima_client.preprocess import PreprocessSpec, preprocess
from nima_training import distribution
from nima_training.checkpoint import load_checkpoint
from nima_training.cli.import_ import app as import_app
from nima_training.imports import ImportFailed, import_weights
from nima_training.inference import predict
from nima_training.models import create_model


@pytest.mark.parametrize("kind", ["aesthetic", "technical"])
def test_tflite_agrees_with_its_interpreter(kind: str, shared_dir: Path) -> None:
    from nima_training.distill.teacher import TFLiteTeacher

    source = shared_dir / "models" / f"nima_mobilenet_{kind}_int8.tflite"
    imported = import_weights(source)
    photos = sorted((shared_dir / "photos" / "train").iterdir())
    step = len(photos) // 200
    pixels = np.stack([preprocess(p.read_bytes(), imported.spec) for p in photos[::step][:200]])
    theirs = distribution.mean(torch.from_numpy(TFLiteTeacher(source)(pixels)))
    error = (distribution.mean(predict(imported.model, pixels, imported.spec)) - theirs).abs()
    assert len(error) == 200
    assert error.mean() < 0.03
    assert error.max() < 0.1


def test_import_writes_a_checkpoint(shared_dir: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted((shared_dir / "photos" / "train").iterdir())[:12]:
        (photos / path.name).write_bytes(path.read_bytes())
    source = shared_dir / "models" / "nima_mobilenet_technical_int8.tflite"
    out = tmp_path / "technical"
    import_app(
        [str(source), "--out", str(out), "--photos", str(photos), "--check", "4"],
        standalone_mode=False,
    )
    loaded = load_checkpoint(out)
    assert loaded.meta["backbone"] == "mobilenet_v1"
    assert loaded.meta["metrics"]["interpreter"]["max_abs_difference"] < 0.1
    assert "12 photographs" in loaded.meta["reference"]["set"]


@pytest.fixture(scope="module")
def keras(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """Keras itself, on PyTorch: its own layer names, shapes, file format and arithmetic."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "torch")
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        yield pytest.importorskip("keras")


def nima_of(keras: Any, application: str, side: int) -> Any:
    """The network as idealo builds it: a Keras application, its average, dropout, a dense layer."""
    keras.utils.set_random_seed(11)
    base = getattr(keras.applications, application)(
        input_shape=(side, side, 3), weights=None, include_top=False, pooling="avg"
    )
    head = keras.layers.Dense(10, activation="softmax")
    model = keras.Model(base.input, head(keras.layers.Dropout(0.75)(base.output)))
    rng = np.random.default_rng(12)
    for layer in model.layers:
        values = [weight.numpy() for weight in layer.weights]
        if isinstance(layer, keras.layers.BatchNormalization):
            # As trained ones are: no two parameters alike, so that none can change places.
            gain = [rng.uniform(0.8, 1.2, v.shape) for v in values[: len(values) - 3]]
            beta, mean = (rng.normal(0, 0.1, values[-1].shape) for _ in range(2))
            layer.set_weights([*gain, beta, mean, rng.uniform(0.8, 1.2, values[-1].shape)])
        elif len(values) == 1:  # He initialisation, so that a difference reaches the end
            shape = values[0].shape
            inputs = 9 if shape[-1] == 1 else np.prod(shape[:-1])
            layer.set_weights([rng.normal(0, (2 / inputs) ** 0.5, shape)])
    return model


def as_weight_file(source: Path, target: Path, renamed: Callable[[str], str]) -> Path:
    """What ``save_weights`` of Keras 2 wrote: layers at the root, ``layer/parameter:0`` inside."""
    with h5py.File(source) as old, h5py.File(target, "w") as new:
        old = old["model_weights"]
        names = [renamed(name) for name in old.attrs["layer_names"]]
        new.attrs["layer_names"] = [name.encode() for name in names]
        for before, name in zip(old.attrs["layer_names"], names, strict=True):
            group = new.create_group(name)
            weights = [str(w).split("/")[-1] for w in old[before].attrs["weight_names"]]
            group.attrs["weight_names"] = [f"{name}/{w}:0".encode() for w in weights]
            for w, path in zip(weights, old[before].attrs["weight_names"], strict=True):
                group[f"{name}/{w}:0"] = old[before][path][...]
    return target


def keras_2_name(name: str) -> str:
    """Numbers that go on from a network made before in the same session."""
    if match := re.fullmatch(r"(conv2d|batch_normalization)(?:_(\d+))?", name):
        return f"{match[1]}_{int(match[2] or 0) + 95}"
    return name


def keras_2_densenet_name(name: str) -> str:
    return name.replace("conv1_", "conv1/") if name in ("conv1_conv", "conv1_bn") else name


@pytest.mark.parametrize(
    ("application", "side", "backbone", "spec"),
    [
        ("MobileNet", 96, "mobilenet_v1", PreprocessSpec()),
        (
            "DenseNet121", 64, "densenet121",
            PreprocessSpec(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        ),
        ("InceptionV3", 75, "inception_v3_keras", PreprocessSpec()),
    ],
)  # fmt: skip
def test_keras_networks_compute_the_same_here(
    application: str, side: int, backbone: str, spec: PreprocessSpec, keras: Any, tmp_path: Path
) -> None:
    theirs = nima_of(keras, application, side)
    theirs.save(tmp_path / "whole.h5")
    older = keras_2_densenet_name if backbone == "densenet121" else keras_2_name
    weights = as_weight_file(tmp_path / "whole.h5", tmp_path / "weights.hdf5", older)
    pixels = np.random.default_rng(13).uniform(-1, 1, (2, side, side, 3)).astype(np.float32)
    with torch.inference_mode():
        expected = theirs(pixels, training=False).numpy()
        imported = import_weights(tmp_path / "whole.h5")
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        ours = distribution.probabilities(imported.model(x)).numpy()
    assert (imported.backbone, imported.spec) == (backbone, spec)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3  # the two images are told apart
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    again = import_weights(weights).model.state_dict()
    for name, value in imported.model.state_dict().items():
        assert torch.equal(again[name], value), name


def test_torchvisions_inception_would_compute_something_else() -> None:
    torch.manual_seed(3)
    ours = create_model("inception_v3_keras", "none", 0.0).eval()
    plain = create_model("inception_v3", "none", 0.0).eval()
    plain.load_state_dict(ours.state_dict())
    block, other = ours.Mixed_5b.branch_pool, plain.Mixed_5b.branch_pool  # type: ignore[union-attr]
    features = torch.rand(1, 192, 9, 9)
    with torch.inference_mode():
        padded = torch.nn.functional.avg_pool2d(features, 3, stride=1, padding=1)
        exact = torch.nn.functional.avg_pool2d(
            features, 3, stride=1, padding=1, count_include_pad=False
        )
        torch.testing.assert_close(block(padded), other(exact), atol=1e-5, rtol=1e-4)
        assert (block(padded) - other(padded)).abs().max() > 1e-3


def edited(source: Path, target: Path, layer: str, **changes: np.ndarray) -> Path:
    """A copy of a Keras file in which a layer has other parameters, or (no changes) is gone."""
    target.write_bytes(source.read_bytes())
    with h5py.File(target, "r+") as file:
        group = file["model_weights"]
        if not changes:
            names = [name for name in group.attrs["layer_names"] if name != layer]
            group.attrs["layer_names"] = names
        for parameter, value in changes.items():
            path = next(p for p in group[layer].attrs["weight_names"] if p.endswith(parameter))
            del group[layer][path]
            group[layer][path] = value
    return target


def test_keras_files_that_do_not_fit(keras: Any, tmp_path: Path) -> None:
    source = tmp_path / "whole.h5"
    nima_of(keras, "MobileNet", 32).save(source)
    kernel = np.zeros((1, 1, 256, 99), np.float32)
    head = next(n for n in h5py.File(source)["model_weights"].attrs["layer_names"] if "dense" in n)
    for layer, changes, message in (
        ("conv_pw_7", {}, "no layer 'conv_pw_7'"),
        ("conv_pw_7_bn", {}, "no layer 'conv_pw_7_bn'"),
        ("conv_pw_5", {"kernel": kernel}, "'conv_pw_5': expected shape"),
        ("conv_pw_1", {}, "not a MobileNet, DenseNet121 or InceptionV3"),
        (head, {}, "expected one dense layer of 10, found 0"),
        (head, {"kernel": np.zeros((1024, 5), np.float32)}, "expected one dense layer of 10"),
    ):
        with pytest.raises(ImportFailed, match=message):
            import_weights(edited(source, tmp_path / "edited.h5", layer, **changes))
    (tmp_path / "x.h5").write_bytes(b"no hdf5")
    with pytest.raises(ImportFailed, match="not a readable HDF5"):
        import_weights(tmp_path / "x.h5")
    with h5py.File(tmp_path / "y.weights.h5", "w") as file:
        file["layers/conv2d/vars/0"] = np.zeros(3)
    with pytest.raises(ImportFailed, match="names no layers"):
        import_weights(tmp_path / "y.weights.h5")


def test_iqa_pytorch_layout(tmp_path: Path) -> None:
    torch.manual_seed(6)
    model = create_model("vgg16_gap", "none", 0.0).eval()
    state = {
        (f"base_model.features_{name.split('.', 1)[1]}" if name.startswith("features")
         else f"classifier.2.{name.rsplit('.', 1)[1]}"): value
        for name, value in model.state_dict().items()
    }  # fmt: skip
    torch.save({"params": state}, tmp_path / "nima.pth")
    imported = import_weights(tmp_path / "nima.pth")
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(imported.model(x), model(x))
    assert imported.spec.mean == (0.485, 0.456, 0.406)


def test_what_is_not_a_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tflite").write_bytes(b"0000TFL0")
    (tmp_path / "cut.tflite").write_bytes(b"\x1c\0\0\0TFL3" + b"\xff" * 40)
    torch.save(Path("code would run"), tmp_path / "pickled.pth")
    torch.save({"params": {"x": torch.zeros(1)}}, tmp_path / "a.pth")
    torch.save({0: torch.zeros(1), "classifier.3.bias": 1.0}, tmp_path / "numbers.pth")
    for name, message in (
        ("a.tflite", "not a TFLite file"),
        ("cut.tflite", "is damaged"),
        ("pickled.pth", "not a state dict of tensors alone"),
        ("a.pth", "not an IQA-PyTorch"),
        ("numbers.pth", r"not an IQA-PyTorch .* \(it has 0, classifier"),
        ("a.onnx", "expected one of"),
        ("absent.pth", "no file at"),
    ):
        with pytest.raises(ImportFailed, match=message):
            import_weights(tmp_path / name)


def test_damage_inside_a_tflite_file_is_told(shared_dir: Path, tmp_path: Path) -> None:
    """Of the numbers that say how large a tensor is and where its values lie."""
    source = shared_dir / "models" / "nima_mobilenet_aesthetic_int8.tflite"
    whole = source.read_bytes()
    path = tmp_path / "damaged.tflite"
    refused = 0
    for seed in range(12):
        content = bytearray(whole)
        for place in np.random.default_rng(seed).integers(len(whole) - 60_000, len(whole), 60):
            content[place] ^= 0xFF
        path.write_bytes(content)
        try:
            import_weights(path)
        except ImportFailed:
            refused += 1
    assert refused


def test_a_place_that_cannot_be_written_is_told(shared_dir: Path, tmp_path: Path) -> None:
    source = shared_dir / "models" / "nima_mobilenet_aesthetic_int8.tflite"
    (tmp_path / "file").write_text("mine")
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    for out, reason in (("file", "file is not a folder"), ("file/below", "file is not a folder")):
        arguments = [str(source), "--photos", str(tmp_path), "--out", str(tmp_path / out)]
        result = CliRunner().invoke(import_app, arguments)
        assert result.exit_code == 2
        assert result.output.startswith("nima import: ")
        assert reason in result.output
    assert (tmp_path / "file").read_text() == "mine"


def test_a_backbone_is_not_a_nima(shared_dir: Path) -> None:
    models = shared_dir / "models"
    with pytest.raises(ImportFailed, match="not a MobileNet v1"):
        import_weights(models / "tf2_mobilenet_v2_1.0_224_ptq.tflite")
    with pytest.raises(ImportFailed):
        import_weights(models / "mobilenet_v1_1.0_224_quant_embedding_extractor.tflite")
