"""MobileNet v1 (Howard et al., 2017) as Keras lays it out, which torchvision does not have.

Keras pads stride-2 convolutions on the right and bottom only (TensorFlow's SAME for even inputs);
that padding is explicit here, so that imported weights give the same activations.
"""

from __future__ import annotations

from torch import Tensor, nn

from nima_training.distribution import NUM_RATINGS

# (output channels, stride) of the 13 depthwise-separable blocks.
BLOCKS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1),
    (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip
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
    """FP32 ``[B, 3, H, W]`` normalised to [-1, 1] -> logits ``[B, num_classes]``."""

    def __init__(
        self, weights: None = None, num_classes: int = NUM_RATINGS, dropout: float = 0.75
    ) -> None:
        super().__init__()
        if weights is not None:
            raise ValueError("mobilenet_v1 is built empty; `nima import` fills it")
        layers: list[nn.Module] = [_conv(3, 32, 3, 2)]
        width = 32
        for outputs, stride in BLOCKS:
            layers.append(
                nn.Sequential(
                    _conv(width, width, 3, stride, groups=width), _conv(width, outputs, 1, 1)
                )
            )
            width = outputs
        self.features = nn.Sequential(*layers)
        self.classifier: nn.Module = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(width, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        pooled: Tensor = self.features(x).mean(dim=(2, 3))
        logits: Tensor = self.classifier(pooled)
        return logits
