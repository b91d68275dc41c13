"""Published NIMA weights become networks of this project.

| source | network | preprocessing it was trained with |
|---|---|---|
| TFLite MobileNet v1 (idealo, converted) | ``mobilenet_v1`` | 224 stretch, [-1, 1] |
| Keras HDF5 MobileNet (idealo/image-quality-assessment) | ``mobilenet_v1`` | 224 stretch, [-1, 1] |
| IQA-PyTorch NIMA VGG16 ``.pth`` | ``vgg16_gap`` | ImageNet mean and std |

idealo's own loader resizes with nearest neighbour; this project resizes with an antialiased filter,
which is what the networks saw in effect when photos were close to the input size.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nima_client.preprocess import PreprocessSpec
from nima_training.distribution import NUM_RATINGS
from nima_training.folded import conv_norm_pairs, load_folded
from nima_training.models import create_model, head_module
from nima_training.tflite import read_tflite

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImportFailed(ValueError):
    """The file is not a network this importer knows; the message says what was found."""


@dataclass(frozen=True)
class Imported:
    """A network in eval mode with the facts a checkpoint needs."""

    model: nn.Module
    backbone: str
    spec: PreprocessSpec
    source: str


def import_weights(path: str | Path) -> Imported:
    """Import by file type: ``.tflite``, ``.h5``/``.hdf5``, or ``.pth``/``.pt``.

    Raises:
        ImportFailed: unknown type, or a network of another shape.
    """
    path = Path(path)
    readers = {
        ".tflite": import_tflite,
        ".h5": import_keras,
        ".hdf5": import_keras,
        ".pth": import_iqa_pytorch,
        ".pt": import_iqa_pytorch,
    }
    if path.suffix not in readers:
        raise ImportFailed(f"{path.name}: expected one of {', '.join(readers)}")
    if not path.is_file():
        raise ImportFailed(f"no file at {path}")
    return readers[path.suffix](path)


def import_tflite(path: Path) -> Imported:
    """A quantised NIMA MobileNet v1, dequantised."""
    network = read_tflite(path)
    model = create_model("mobilenet_v1", weights="none", dropout=0.0)
    try:
        head = load_folded(model, network.layers)
    except ValueError as error:
        raise ImportFailed(f"{path.name} is not a MobileNet v1: {error}") from error
    if head is None:
        raise ImportFailed(f"{path.name} has no classifier: it is a backbone, not a NIMA")
    _set_head(model, "mobilenet_v1", head[:, :-1], head[:, -1], path)
    return Imported(model.eval(), "mobilenet_v1", PreprocessSpec(), "TFLite, dequantised")


def import_keras(path: Path) -> Imported:
    """Idealo's Keras MobileNet weights (``conv1``, ``conv_dw_N``, ``conv_pw_N``, a dense layer)."""
    arrays = _keras_arrays(path)
    names = ["conv1"] + [f"conv_{kind}_{n}" for n in range(1, 14) for kind in ("dw", "pw")]
    model = create_model("mobilenet_v1", weights="none", dropout=0.0)
    if missing := [name for name in names if name not in arrays]:
        known = ", ".join(sorted(arrays)[:5])
        raise ImportFailed(
            f"{path.name} is not a Keras MobileNet: no layer {missing[0]!r} (has {known}, …)"
        )
    with torch.no_grad():
        for name, (conv, norm) in zip(names, conv_norm_pairs(model), strict=True):
            layer, batch_norm = arrays[name], arrays.get(f"{name}_bn")
            if batch_norm is None:
                raise ImportFailed(f"{path.name}: layer {name}_bn is missing")
            if "depthwise_kernel" in layer:
                kernel = layer["depthwise_kernel"].transpose(2, 3, 0, 1)  # HWCM -> C M H W
            else:
                kernel = layer["kernel"].transpose(3, 2, 0, 1)  # HWIO -> OIHW
            _copy(conv.weight, kernel, name)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            _copy(norm.weight, batch_norm["gamma"], name)
            _copy(norm.bias, batch_norm["beta"], name)
            _copy(norm.running_mean, batch_norm["moving_mean"], name)
            _copy(norm.running_var, batch_norm["moving_variance"], name)
    heads = [
        value for name, value in arrays.items()
        if name.startswith("dense") and value["kernel"].shape[-1] == NUM_RATINGS
    ]  # fmt: skip
    if len(heads) != 1:
        raise ImportFailed(
            f"{path.name}: expected one dense layer of {NUM_RATINGS}, found {len(heads)}"
        )
    weight = torch.from_numpy(heads[0]["kernel"].T.copy())
    _set_head(model, "mobilenet_v1", weight, torch.from_numpy(heads[0]["bias"]), path)
    return Imported(model.eval(), "mobilenet_v1", PreprocessSpec(), "Keras HDF5")


def import_iqa_pytorch(path: Path) -> Imported:
    """IQA-PyTorch's NIMA on VGG16: convolutions, global average pooling, one linear layer."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(state, dict) and isinstance(state.get("params"), dict):
        state = state["params"]
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        if match := re.fullmatch(r"base_model\.features[._](\d+)\.(weight|bias)", name):
            renamed[f"features.{match[1]}.{match[2]}"] = value
        elif match := re.fullmatch(r"classifier\.\d+\.(weight|bias)", name):
            renamed[f"classifier.1.{match[1]}"] = value
    model = create_model("vgg16_gap", weights="none", dropout=0.0)
    try:
        model.load_state_dict(renamed)
    except RuntimeError as error:
        raise ImportFailed(f"{path.name} is not an IQA-PyTorch NIMA VGG16: {error}") from error
    spec = PreprocessSpec(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return Imported(model.eval(), "vgg16_gap", spec, "IQA-PyTorch state dict")


def _keras_arrays(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Layer name -> parameter name -> FP32 array, for weight files and whole saved models."""
    import h5py

    arrays: dict[str, dict[str, np.ndarray]] = {}

    def visit(name: str, item: object) -> None:
        parts = name.split("/")
        if isinstance(item, h5py.Dataset) and len(parts) >= 2 and "optimizer_weights" not in parts:
            parameter = parts[-1].split(":")[0]
            arrays.setdefault(parts[-2], {})[parameter] = np.asarray(item, dtype=np.float32)

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except OSError as error:
        raise ImportFailed(f"{path.name} is not a readable HDF5 file: {error}") from error
    return arrays


def _copy(target: Tensor, value: np.ndarray, name: str) -> None:
    if tuple(target.shape) != value.shape:
        raise ImportFailed(
            f"layer {name}: expected shape {tuple(target.shape)}, found {value.shape}"
        )
    target.copy_(torch.from_numpy(np.ascontiguousarray(value)))


def _set_head(model: nn.Module, backbone: str, weight: Tensor, bias: Tensor, path: Path) -> None:
    linear = head_module(model, backbone).get_submodule("1")
    assert isinstance(linear, nn.Linear)
    if weight.shape != linear.weight.shape:
        raise ImportFailed(f"{path.name}: classifier of shape {tuple(weight.shape)}, not a NIMA")
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
