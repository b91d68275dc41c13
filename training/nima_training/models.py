"""The networks: an ImageNet backbone with a dropout and a 10-logit head (Talebi & Milanfar, 2017).

Every model maps normalised FP32 images ``[B, 3, H, W]`` to logits ``[B, 10]``; softmax and
moments stay outside (:mod:`nima_training.distribution`). Backbones are torchvision's, under
torchvision's own parameter names, so that a state dict means the same in both libraries;
``mobilenet_v1``, which torchvision lacks, is in :mod:`nima_training.mobilenet_v1`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import models as tv

from nima_client.preprocess import PreprocessSpec
from nima_training.distribution import NUM_RATINGS
from nima_training.inception_keras import inception_v3_keras
from nima_training.mobilenet_v1 import WIDTHS, MobileNetV1, widths_of

WEIGHTS_NONE = "none"
WEIGHTS_IMAGENET = "imagenet"


@dataclass(frozen=True)
class Backbone:
    """How to build one backbone and where its classifier sits.

    ``features`` is the width that enters the head; ``head`` the dotted name of the module that the
    dropout and 10-logit layer replace; ``input_size`` what it was pretrained on, ``mean`` and
    ``std`` the normalisation it was pretrained with; ``dropout`` the name of torchvision's own
    dropout directly before the head, which is switched off: ours is in its place.
    """

    build: Callable[..., nn.Module]
    features: int
    head: str
    weights: object | None = None
    input_size: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    dropout: str | None = None

    @property
    def preprocessing(self) -> PreprocessSpec:
        """What its pretrained weights expect: stretched to the input size, normalised."""
        return PreprocessSpec(
            resize_size=self.input_size, crop_size=self.input_size, mean=self.mean, std=self.std
        )


class VGG16Pooled(nn.Module):
    """VGG16's convolutions, global average pooling and one linear layer (IQA-PyTorch's NIMA)."""

    def __init__(self, weights: None = None) -> None:
        super().__init__()
        if weights is not None:
            raise ValueError("vgg16_gap is built empty; create_model loads the weights")
        self.features = tv.vgg16(weights=None).features
        self.classifier: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        logits: Tensor = self.classifier(self.features(x).mean(dim=(2, 3)))
        return logits


_HALF = (0.5, 0.5, 0.5)

BACKBONES: dict[str, Backbone] = {
    "mobilenet_v1": Backbone(MobileNetV1, 1024, "classifier", mean=_HALF, std=_HALF),
    "mobilenet_v2": Backbone(
        tv.mobilenet_v2, 1280, "classifier", tv.MobileNet_V2_Weights.IMAGENET1K_V2
    ),
    "mobilenet_v3_small": Backbone(
        tv.mobilenet_v3_small,
        1024,
        "classifier.3",
        tv.MobileNet_V3_Small_Weights.IMAGENET1K_V1,
        dropout="classifier.2",
    ),
    "mobilenet_v3_large": Backbone(
        tv.mobilenet_v3_large,
        1280,
        "classifier.3",
        tv.MobileNet_V3_Large_Weights.IMAGENET1K_V2,
        dropout="classifier.2",
    ),
    "vgg16": Backbone(
        tv.vgg16, 4096, "classifier.6", tv.VGG16_Weights.IMAGENET1K_V1, dropout="classifier.5"
    ),
    "vgg16_gap": Backbone(VGG16Pooled, 512, "classifier", tv.VGG16_Weights.IMAGENET1K_V1),
    # torchvision feeds these weights [-1, 1] too: that is what its transform_input does.
    "inception_v3": Backbone(
        tv.inception_v3,
        2048,
        "fc",
        tv.Inception_V3_Weights.IMAGENET1K_V1,
        299,
        _HALF,
        _HALF,
        dropout="dropout",
    ),
    "inception_v3_keras": Backbone(
        inception_v3_keras, 2048, "fc", None, 224, _HALF, _HALF, dropout="dropout"
    ),
    "resnet50": Backbone(tv.resnet50, 2048, "fc", tv.ResNet50_Weights.IMAGENET1K_V2),
    "densenet121": Backbone(
        tv.densenet121, 1024, "classifier", tv.DenseNet121_Weights.IMAGENET1K_V1
    ),
    "efficientnet_v2_s": Backbone(
        tv.efficientnet_v2_s, 1280, "classifier", tv.EfficientNet_V2_S_Weights.IMAGENET1K_V1, 384
    ),
    "convnext_tiny": Backbone(
        tv.convnext_tiny, 768, "classifier.2", tv.ConvNeXt_Tiny_Weights.IMAGENET1K_V1
    ),
    "swin_t": Backbone(tv.swin_t, 768, "head", tv.Swin_T_Weights.IMAGENET1K_V1),
}


class WeightsError(ValueError):
    """Pretrained weights that cannot be used; the message says why."""


class WeightsUnavailable(WeightsError):
    """Pretrained weights are neither on disk nor to be had; the message says where to put them."""


def create_model(
    backbone: str,
    weights: str | Path = WEIGHTS_IMAGENET,
    dropout: float = 0.75,
    widths: Sequence[int] | None = None,
) -> nn.Module:
    """A NIMA network on ``backbone``.

    Args:
        backbone: a key of :data:`BACKBONES`.
        weights: ``"imagenet"`` (torchvision's weights, from its cache or downloaded), ``"none"``
            (random initialisation), or the path of a ``.pth``/``.safetensors`` state dict of the
            plain torchvision backbone, or of a NIMA as made here, or a checkpoint directory; a
            NIMA's head comes along.
        dropout: rate before the head, of the only dropout there; the paper uses 0.75.
        widths: channels of a pruned ``mobilenet_v1``; None builds the backbone as the weights
            have it, else as published.

    Returns:
        A module mapping FP32 ``[B, 3, H, W]`` to logits ``[B, 10]``.

    Raises:
        ValueError: unknown backbone, or ``widths`` for one that has none to choose.
        WeightsError: a file that is no state dict, or weights that do not fit the backbone.
        CheckpointError: a directory that is no checkpoint, or a damaged one.
        WeightsUnavailable: ImageNet weights asked for but not to be had.
    """
    if backbone not in BACKBONES:
        raise ValueError(f"unknown backbone {backbone!r}; known: {', '.join(sorted(BACKBONES))}")
    spec = BACKBONES[backbone]
    state = None if str(weights) == WEIGHTS_NONE else _backbone_state(backbone, weights)
    if widths is None and state is not None:
        widths = pruned_widths(backbone, state)
    if backbone in ("inception_v3", "inception_v3_keras"):
        # init_weights=True draws truncated normals for a minute; our head is initialised below.
        model = spec.build(weights=None, init_weights=False, transform_input=False)
        if isinstance(model, tv.Inception3):
            model.aux_logits = False
            model.AuxLogits = None
    elif widths is not None:
        if backbone != "mobilenet_v1":
            raise ValueError(f"widths can be chosen for mobilenet_v1, not for {backbone}")
        model = spec.build(weights=None, widths=widths)
    else:
        model = spec.build(weights=None)
    head = _head(spec.features if widths is None else widths[-1], dropout)
    if state is not None:
        _load_backbone(model, state, spec.head)
        _load_head(head, state, spec.head)
    if spec.head in ("classifier", "fc", "head"):
        setattr(model, spec.head, head)
    else:
        parent_name, _, index = spec.head.rpartition(".")
        parent = model.get_submodule(parent_name)
        assert isinstance(parent, nn.Sequential)
        parent[int(index)] = head
    if spec.dropout is not None:
        before = model.get_submodule(spec.dropout)
        assert isinstance(before, nn.Dropout)
        before.p = 0.0
    return model


def _head(features: int, dropout: float) -> nn.Sequential:
    linear = nn.Linear(features, NUM_RATINGS)
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.Dropout(dropout), linear)


def head_module(model: nn.Module, backbone: str) -> nn.Module:
    """The dropout and 10-logit layer of a model made by :func:`create_model`."""
    return model.get_submodule(BACKBONES[backbone].head)


def pruned_widths(backbone: str, state: Mapping[str, Tensor]) -> list[int] | None:
    """``widths`` of the network that a state dict is of; None if it is not pruned."""
    widths = widths_of(state) if backbone == "mobilenet_v1" else None
    return None if widths == list(WIDTHS) else widths


def _backbone_state(backbone: str, weights: str | Path) -> dict[str, Tensor]:
    spec = BACKBONES[backbone]
    if str(weights) != WEIGHTS_IMAGENET:
        path = Path(weights)
        if path.is_dir():
            return _checkpoint_state(backbone, path)
        if not path.is_file():
            raise WeightsUnavailable(f"no weights file at {path}")
        try:
            if path.suffix == ".safetensors":
                from safetensors.torch import load_file

                return load_file(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # both readers refuse in many ways
            raise WeightsError(f"{path} is not a state dict of tensors alone") from error
        if not isinstance(state, dict) or not all(torch.is_tensor(v) for v in state.values()):
            raise WeightsError(f"{path} is not a state dict of tensors alone")
        return state
    if spec.weights is None:
        raise WeightsUnavailable(
            f"{backbone} has no torchvision weights: pass --weights none or a state dict file"
        )
    url: str = spec.weights.url  # type: ignore[attr-defined]
    place = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    try:
        return spec.weights.get_state_dict(progress=True, check_hash=True)  # type: ignore[attr-defined, no-any-return]
    except OSError as error:
        raise WeightsUnavailable(
            f"ImageNet weights of {backbone} are not on this machine: "
            f"fetch {url} and place it at {place}, or pass --weights none"
        ) from error
    except Exception as error:  # the reader refuses in many ways, a download by its hash
        raise WeightsError(
            f"{place} is damaged or no whole copy: fetch {url} again and place it there"
        ) from error


def _checkpoint_state(backbone: str, directory: Path) -> dict[str, Tensor]:
    from safetensors.torch import load

    from nima_training.checkpoint_files import read_weights

    meta, weights = read_weights(directory)
    if meta["backbone"] != backbone:
        raise WeightsError(f"{directory} is a {meta['backbone']}: pass it as the backbone")
    return load(weights)


def _load_backbone(model: nn.Module, state: dict[str, Tensor], head: str) -> None:
    """Load everything but the layer that the NIMA head replaces (and Inception's auxiliary one)."""

    def kept(name: str) -> bool:
        return not name.startswith((head + ".", "AuxLogits."))

    own = {name for name in model.state_dict() if kept(name)}
    state = {name: value for name, value in state.items() if kept(name)}
    if missing := sorted(own - state.keys()):
        raise WeightsError(
            f"weights do not fit the backbone: {len(missing)} missing, e.g. {missing[0]}"
        )
    if extra := sorted(state.keys() - own):
        raise WeightsError(
            f"weights do not fit the backbone: {len(extra)} unknown, e.g. {extra[0]}"
        )
    try:
        model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise WeightsError(f"weights do not fit the backbone: {first}") from error


def _load_head(head: nn.Sequential, state: dict[str, Tensor], name: str) -> None:
    """Load the ratings' layer, if the state is a NIMA's; ImageNet's has other names or shapes."""
    own = {key: state.get(f"{name}.{key}") for key in head.state_dict()}
    if all(v is not None and v.shape == head.state_dict()[key].shape for key, v in own.items()):
        head.load_state_dict(own)
