"""Keras HDF5 weights into the networks of this project.

Read are whole saved models and weight files of Keras 1 to 3 in HDF5 (``.h5``, ``.hdf5``; not the
``.weights.h5`` of Keras 3, which does not keep layer names). Which layer goes where:

MobileNet -> ``mobilenet_v1``: ``conv1``, ``conv_dw_N``, ``conv_pw_N``, each with its ``_bn``.
DenseNet121 -> ``densenet121``: ``conv1/conv``, ``convB_blockN_1_conv``, ``poolB_conv`` and so on.
InceptionV3 -> ``inception_v3_keras``: 94 ``conv2d_N``, numbered in order of creation, which is the
order in which torchvision defines its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from nima_client._os_errors import reason
from nima_training.distribution import NUM_RATINGS
from nima_training.folded import conv_norm_pairs
from nima_training.models import create_model, head_module

if TYPE_CHECKING:
    import h5py

Layers = Mapping[str, Mapping[str, np.ndarray]]
"""Layer name -> parameter name (``kernel``, ``gamma`` …) -> FP32 array."""

INCEPTION_CONVOLUTIONS = 94
DENSENET_BLOCKS = (6, 12, 24, 16)
_DENSENET_EPSILON = 1.001e-5


class KerasError(ValueError):
    """The file is not a Keras network this reader knows; the message says what was found."""


def read_layers(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """The parameters of every layer of a Keras HDF5 file that has some.

    Raises:
        KerasError: not HDF5, or not written by Keras.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            group = file.get("model_weights", file)
            names = list(_strings(group, "layer_names"))
            if not names:
                raise KerasError(
                    f"{path.name} names no layers: it is not a Keras HDF5 file of weights (Keras 3 "
                    "writes one with model.save('model.h5'))"
                )
            layers = {}
            for name in names:
                own = group[name]
                # "conv1/conv/kernel:0", "conv1_2/kernel:0", "kernel": the last part counts.
                found = {
                    weight.split("/")[-1].split(":")[0]: np.asarray(own[weight], np.float32)
                    for weight in _strings(own, "weight_names")
                }
                if found:
                    layers[name] = found
            return layers
    except (OSError, KeyError) as error:
        raise KerasError(
            f"{path.name} is not a readable HDF5 file of Keras: {reason(error)}"
        ) from error


def _strings(group: h5py.Group, name: str) -> Iterator[str]:
    """A list of strings among the attributes; long ones are cut into ``name0``, ``name1`` …"""
    parts = [name] if name in group.attrs else []
    while f"{name}{len(parts)}" in group.attrs and name not in group.attrs:
        parts.append(f"{name}{len(parts)}")
    for part in parts:
        for value in group.attrs[part]:
            yield value.decode() if isinstance(value, bytes) else str(value)


def load_keras(path: Path) -> tuple[nn.Module, str]:
    """The network in eval mode, without dropout, and the name of its backbone.

    Raises:
        KerasError: a network of another kind, or layers or shapes that do not fit.
    """
    layers = read_layers(path)
    if "conv_pw_1" in layers:
        backbone, match = "mobilenet_v1", _mobilenet
    elif "conv2_block1_1_conv" in layers:
        backbone, match = "densenet121", _densenet
    elif len(_numbered(layers, "conv2d")) == INCEPTION_CONVOLUTIONS:
        backbone, match = "inception_v3_keras", _inception
    else:
        raise KerasError(
            f"{path.name} is not a MobileNet, DenseNet121 or InceptionV3 of Keras: it has "
            f"{len(layers)} layers, {', '.join(list(layers)[:5])}, …"
        )
    model = create_model(backbone, weights="none", dropout=0.0)
    wanted = dict(match(model, layers))
    heads = {
        name: layer for name, layer in layers.items()
        if name not in wanted and layer.get("kernel", np.empty(0)).shape[-1:] == (NUM_RATINGS,)
    }  # fmt: skip
    if len(heads) != 1:
        raise KerasError(
            f"{path.name}: expected one dense layer of {NUM_RATINGS}, found {len(heads)}"
        )
    wanted[next(iter(heads))] = head_module(model, backbone).get_submodule("1")
    if unused := sorted(layers.keys() - wanted.keys()):
        raise KerasError(f"{path.name}: layer {unused[0]!r} has no place in a {backbone}")
    epsilon = _DENSENET_EPSILON if backbone == "densenet121" else None
    with torch.no_grad():
        for name, module in wanted.items():
            if name not in layers:
                raise KerasError(f"{path.name}, taken for a {backbone}, has no layer {name!r}")
            _fill(module, layers[name], name, epsilon)
    return model.eval(), backbone


def _mobilenet(model: nn.Module, layers: Layers) -> Iterator[tuple[str, nn.Module]]:
    names = ["conv1"] + [f"conv_{kind}_{n}" for n in range(1, 14) for kind in ("dw", "pw")]
    for name, (conv, norm) in zip(names, conv_norm_pairs(model), strict=True):
        yield name, conv
        yield f"{name}_bn", norm


def _densenet(model: nn.Module, layers: Layers) -> Iterator[tuple[str, nn.Module]]:
    at = model.get_submodule
    stem = "conv1/" if "conv1/conv" in layers else "conv1_"  # Keras 3 allows no slash in a name
    yield f"{stem}conv", at("features.conv0")
    yield f"{stem}bn", at("features.norm0")
    for block, count in enumerate(DENSENET_BLOCKS, start=1):
        for layer in range(1, count + 1):
            theirs = f"conv{block + 1}_block{layer}"
            ours = f"features.denseblock{block}.denselayer{layer}"
            yield f"{theirs}_0_bn", at(f"{ours}.norm1")
            yield f"{theirs}_1_conv", at(f"{ours}.conv1")
            yield f"{theirs}_1_bn", at(f"{ours}.norm2")
            yield f"{theirs}_2_conv", at(f"{ours}.conv2")
        if block < len(DENSENET_BLOCKS):
            yield f"pool{block + 1}_bn", at(f"features.transition{block}.norm")
            yield f"pool{block + 1}_conv", at(f"features.transition{block}.conv")
    yield "bn", at("features.norm5")


def _inception(model: nn.Module, layers: Layers) -> Iterator[tuple[str, nn.Module]]:
    # A session that made other networks first counts on, so only the order tells.
    convolutions, norms = _numbered(layers, "conv2d"), _numbered(layers, "batch_normalization")
    pairs = conv_norm_pairs(model)
    if len(norms) != len(pairs):
        raise KerasError(f"an InceptionV3 has {len(pairs)} batch norms, the file {len(norms)}")
    for conv_name, norm_name, (conv, norm) in zip(convolutions, norms, pairs, strict=True):
        yield conv_name, conv
        yield norm_name, norm


def _numbered(layers: Layers, stem: str) -> list[str]:
    """``stem``, ``stem_1``, ``stem_2`` … by number."""
    found = {}
    for name in layers:
        if match := re.fullmatch(rf"{stem}(?:_(\d+))?", name):
            found[int(match[1] or 0)] = name
    return [found[number] for number in sorted(found)]


def _fill(
    module: nn.Module, layer: Mapping[str, np.ndarray], name: str, epsilon: float | None
) -> None:
    if isinstance(module, nn.BatchNorm2d):
        assert module.running_mean is not None
        assert module.running_var is not None
        width = module.num_features
        _copy(module.weight, layer.get("gamma", np.ones(width, np.float32)), name)  # scale=False
        _copy(module.bias, _parameter(layer, "beta", name), name)
        _copy(module.running_mean, _parameter(layer, "moving_mean", name), name)
        _copy(module.running_var, _parameter(layer, "moving_variance", name), name)
        if epsilon is not None:
            module.running_var += epsilon - module.eps
        return
    parameter = "depthwise_kernel" if "depthwise_kernel" in layer else "kernel"
    kernel = _parameter(layer, parameter, name)
    assert isinstance(module, (nn.Conv2d, nn.Linear))
    if isinstance(module, nn.Linear):
        kernel = kernel.T
        _copy(module.bias, _parameter(layer, "bias", name), name)
    elif kernel.ndim == 4:
        # HWIO -> OIHW; a depthwise kernel is HW, channel, multiplier.
        kernel = kernel.transpose((2, 3, 0, 1) if module.groups > 1 else (3, 2, 0, 1))
    _copy(module.weight, kernel, name)


def _parameter(layer: Mapping[str, np.ndarray], parameter: str, name: str) -> np.ndarray:
    if parameter not in layer:
        raise KerasError(f"layer {name!r} has no {parameter}, only {', '.join(layer)}")
    return layer[parameter]


def _copy(target: Tensor, value: np.ndarray, name: str) -> None:
    if tuple(target.shape) != value.shape:
        raise KerasError(
            f"layer {name!r}: expected shape {tuple(target.shape)}, found {value.shape}"
        )
    target.copy_(torch.from_numpy(np.ascontiguousarray(value)))
