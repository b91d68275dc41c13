"""Published weights: TFLite against its interpreter, Keras HDF5 and IQA-PyTorch layouts."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from nima_client.preprocess import preprocess
from nima_training import distribution
from nima_training.checkpoint import load_checkpoint
from nima_training.cli.import_ import app as import_app
from nima_training.folded import conv_norm_pairs
from nima_training.imports import ImportFailed, import_weights
from nima_training.inference import predict
from nima_training.models import create_model, head_module


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


def keras_file(path: Path, model: torch.nn.Module, drop: str = "") -> None:
    """Write ``model`` as Keras lays out its MobileNet weights."""
    names = ["conv1"] + [f"conv_{kind}_{n}" for n in range(1, 14) for kind in ("dw", "pw")]
    with h5py.File(path, "w") as file:

        def put(layer: str, parameter: str, value: torch.Tensor) -> None:
            if layer != drop:
                file[f"{layer}/{layer}/{parameter}:0"] = value.detach().numpy()

        for name, (conv, norm) in zip(names, conv_norm_pairs(model), strict=True):
            if "_dw_" in name:
                put(name, "depthwise_kernel", conv.weight.permute(2, 3, 0, 1))
            else:
                put(name, "kernel", conv.weight.permute(2, 3, 1, 0))
            put(f"{name}_bn", "gamma", norm.weight)
            put(f"{name}_bn", "beta", norm.bias)
            put(f"{name}_bn", "moving_mean", norm.running_mean)
            put(f"{name}_bn", "moving_variance", norm.running_var)
        linear = head_module(model, "mobilenet_v1").get_submodule("1")
        put("dense_1", "kernel", linear.weight.T)
        put("dense_1", "bias", linear.bias)


def randomised(backbone: str) -> torch.nn.Module:
    torch.manual_seed(5)
    model = create_model(backbone, "none", 0.0).eval()
    with torch.no_grad():
        for _, norm in conv_norm_pairs(model):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_()
    return model


def test_keras_layout(tmp_path: Path) -> None:
    model = randomised("mobilenet_v1")
    keras_file(tmp_path / "w.hdf5", model)
    imported = import_weights(tmp_path / "w.hdf5").model
    for (name, a), b in zip(
        model.state_dict().items(), imported.state_dict().values(), strict=True
    ):
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(a, b), name


def test_keras_files_that_do_not_fit(tmp_path: Path) -> None:
    keras_file(tmp_path / "w.h5", randomised("mobilenet_v1"), drop="conv_pw_7")
    with pytest.raises(ImportFailed, match="no layer 'conv_pw_7'"):
        import_weights(tmp_path / "w.h5")
    (tmp_path / "x.h5").write_bytes(b"no hdf5")
    with pytest.raises(ImportFailed, match="not a readable HDF5"):
        import_weights(tmp_path / "x.h5")


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
    torch.save({"params": {"x": torch.zeros(1)}}, tmp_path / "a.pth")
    for name, message in (
        ("a.tflite", "not a TFLite file"),
        ("a.pth", "not an IQA-PyTorch"),
        ("a.onnx", "expected one of"),
        ("absent.pth", "no file at"),
    ):
        with pytest.raises(ValueError, match=message):
            import_weights(tmp_path / name)


def test_a_backbone_is_not_a_nima(shared_dir: Path) -> None:
    models = shared_dir / "models"
    with pytest.raises(ImportFailed, match="not a MobileNet v1"):
        import_weights(models / "tf2_mobilenet_v2_1.0_224_ptq.tflite")
    with pytest.raises(ImportFailed):
        import_weights(models / "mobilenet_v1_1.0_224_quant_embedding_extractor.tflite")
