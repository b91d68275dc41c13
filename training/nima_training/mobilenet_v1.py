"""MobileNet v1 (Howard et al., 2017) as Keras lays it out, which torchvision does not have.

Keras pads stride-2 convolutions on the right and bottom only (TensorFlow's SAME for even inputs);
that padding is explicit here, so that imported weights give the same activations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from nima_training.distribution import NUM_RATINGS

# Output channels of the first convolution and of the 13 depthwise-separable blocks.
WIDTHS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
STRIDES = (2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
KERAS_EPS = 1e-3


def _conv(inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = []
    padding = 0
    if kernel > 1 and stride == 2:
        layers.append(nn.ZeroPad2d((0, 1, 0, 1)))
    elif kernel > 1:
        padding = kernel // 2
    layers += [
        nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=KERAS_EPS),
        nn.ReLU6(inplace=True),
    ]
    return nn.Sequential(*layers)


class MobileNetV1(nn.Module):
    """FP32 ``[B, 3, H, W]`` normalised to [-1, 1] -> logits ``[B, num_classes]``.

    ``widths`` are the output channels of the 14 parts of ``features``; a pruned network
    (:mod:`nima_training.distill.prune`) has fewer than :data:`WIDTHS`.
    """

    def __init__(
        self,
        weights: None = None,
        num_classes: int = NUM_RATINGS,
        dropout: float = 0.75,
        widths: Sequence[int] = WIDTHS,
    ) -> None:
        super().__init__()
        if weights is not None:
            raise ValueError("mobilenet_v1 is built empty; `nima import` fills it")
        if len(widths) != len(WIDTHS) or min(widths) < 1:
            raise ValueError(f"mobilenet_v1 needs {len(WIDTHS)} positive widths, got {widths}")
        self.widths = [int(width) for width in widths]
        layers: list[nn.Module] = [_conv(3, widths[0], 3, STRIDES[0])]
        for inputs, outputs, stride in zip(widths, widths[1:], STRIDES[1:], strict=False):
            depthwise = _conv(inputs, inputs, 3, stride, groups=inputs)
            layers.append(nn.Sequential(depthwise, _conv(inputs, outputs, 1, 1)))
        self.features = nn.Sequential(*layers)
        self.classifier: nn.Module = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(widths[-1], num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        pooled: Tensor = self.features(x).mean(dim=(2, 3))
        logits: Tensor = self.classifier(pooled)
        return logits


def widths_of(state: Mapping[str, Tensor]) -> list[int] | None:
    """The widths of the network that a state dict is of; None if it is no :class:`MobileNetV1`."""
    names = ["features.0.1.weight"]
    names += [f"features.{part}.1.0.weight" for part in range(1, len(WIDTHS))]
    return [len(state[name]) for name in names] if state.keys() >= set(names) else None


def multiply_adds(widths: Sequence[int], size: int = 224) -> int:
    """Multiply-adds of the convolutions for one image of ``size`` x ``size`` pixels."""
    side = size // STRIDES[0]
    total = side * side * 27 * widths[0]
    for inputs, outputs, stride in zip(widths, widths[1:], STRIDES[1:], strict=False):
        side //= stride
        total += side * side * inputs * (9 + outputs)
    return total
