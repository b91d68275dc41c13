"""Published NIMA weights become networks of this project.

| source | network | preprocessing it was trained with |
|---|---|---|
| TFLite MobileNet v1 (idealo, converted) | ``mobilenet_v1`` | 224 stretch, [-1, 1] |
| Keras HDF5 MobileNet (idealo/image-quality-assessment) | ``mobilenet_v1`` | 224 stretch, [-1, 1] |
| Keras HDF5 InceptionV3 | ``inception_v3_keras`` | 224 stretch, [-1, 1] |
| Keras HDF5 DenseNet121 | ``densenet121`` | 224 stretch, ImageNet mean and std |
| IQA-PyTorch NIMA VGG16 ``.pth`` | ``vgg16_gap`` | ImageNet mean and std |

idealo's own loader resizes with nearest neighbour; this project resizes with an antialiased filter,
which is what the networks saw in effect when photos were close to the input size.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from nima_client.preprocess import PreprocessSpec
from nima_training.folded import load_folded
from nima_training.keras_hdf5 import KerasError, load_keras
from nima_training.models import BACKBONES, create_model, head_module
from nima_training.tflite import TFLiteError, read_tflite


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
    try:
        layers = read_tflite(path)
    except TFLiteError as error:
        raise ImportFailed(str(error)) from error
    except (struct.error, ValueError, LookupError, TypeError) as error:  # flatbuffers, of damage
        raise ImportFailed(f"{path.name} is damaged: {error}") from error
    model = create_model("mobilenet_v1", weights="none", dropout=0.0)
    try:
        head = load_folded(model, layers)
    except ValueError as error:
        raise ImportFailed(f"{path.name} is not a MobileNet v1: {error}") from error
    if head is None:
        raise ImportFailed(f"{path.name} has no classifier: it is a backbone, not a NIMA")
    _set_head(model, "mobilenet_v1", head[:, :-1], head[:, -1], path)
    return Imported(model.eval(), "mobilenet_v1", PreprocessSpec(), "TFLite, dequantised")


def import_keras(path: Path) -> Imported:
    """A Keras MobileNet, DenseNet121 or InceptionV3 with a dense layer of 10.

    That is how idealo/image-quality-assessment builds them, at 224 x 224 whatever the network, with
    the normalisation of its Keras application.
    """
    try:
        model, backbone = load_keras(path)
    except KerasError as error:
        raise ImportFailed(str(error)) from error
    return Imported(model, backbone, BACKBONES[backbone].preprocessing, "Keras HDF5")


def import_iqa_pytorch(path: Path) -> Imported:
    """IQA-PyTorch's NIMA on VGG16: convolutions, global average pooling, one linear layer."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler refuses in many ways
        raise ImportFailed(
            f"{path.name} is not a state dict of tensors alone, and nothing else is loaded"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("params"), dict):
        state = state["params"]
    if not isinstance(state, dict):
        raise ImportFailed(f"{path.name} holds a {type(state).__name__}, not a state dict")
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        if not (isinstance(name, str) and torch.is_tensor(value)):
            continue
        if match := re.fullmatch(r"base_model\.features[._](\d+)\.(weight|bias)", name):
            renamed[f"features.{match[1]}.{match[2]}"] = value
        elif match := re.fullmatch(r"classifier\.\d+\.(weight|bias)", name):
            renamed[f"classifier.1.{match[1]}"] = value
    model = create_model("vgg16_gap", weights="none", dropout=0.0)
    own = model.state_dict()
    if unlike := [n for n in own if n not in renamed or renamed[n].shape != own[n].shape]:
        raise ImportFailed(
            f"{path.name} is not an IQA-PyTorch NIMA VGG16: no {unlike[0]!r} of shape "
            f"{tuple(own[unlike[0]].shape)} (it has {', '.join(map(str, list(state)[:3]))}, …)"
        )
    model.load_state_dict(renamed)
    return Imported(
        model.eval(), "vgg16_gap", BACKBONES["vgg16_gap"].preprocessing, "IQA-PyTorch state dict"
    )


def _set_head(model: nn.Module, backbone: str, weight: Tensor, bias: Tensor, path: Path) -> None:
    linear = head_module(model, backbone).get_submodule("1")
    assert isinstance(linear, nn.Linear)
    if weight.shape != linear.weight.shape:
        raise ImportFailed(f"{path.name}: classifier of shape {tuple(weight.shape)}, not a NIMA")
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
