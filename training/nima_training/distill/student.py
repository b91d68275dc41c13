"""The student: an ImageNet MobileNet with the adapters that read hints off it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from nima_client.preprocess import PreprocessSpec
from nima_training.distill.hints import TAPS, HintLoss, channels, tapped
from nima_training.folded import calibrate_batch_norm, load_folded, with_folded_norms
from nima_training.inference import network_input
from nima_training.models import create_model, head_module
from nima_training.tflite import read_tflite


class Student(nn.Module):
    """What a stage trains: ``model``, the network of the checkpoint, and the hint adapters.

    The batch norms keep their running statistics (distorted and mixed views would pull them away
    from those of photos), so the network is computed with convolution and norm as one.
    """

    def __init__(self, model: nn.Module, backbone: str, teacher_channels: list[int]) -> None:
        super().__init__()
        self.model = model
        blocks = model.get_submodule("features")
        assert isinstance(blocks, nn.Sequential)
        self._taps = TAPS[backbone]
        self.hints = HintLoss(channels(blocks, self._taps), teacher_channels)
        self._head = [head_module(model, backbone)]  # in a list: not registered a second time
        self._blocks = [with_folded_norms(blocks)]

    def forward(self, x: Tensor, frozen_blocks: int = 0) -> tuple[Tensor, list[Tensor]]:
        """Logits ``[B, 10]`` and the tapped maps.

        Args:
            x: normalised FP32 ``[B, 3, S, S]``.
            frozen_blocks: leading blocks, before the first tap, that get no gradients.
        """
        blocks = self._blocks[0]
        assert isinstance(blocks, nn.Sequential)
        with torch.no_grad():
            x = blocks[:frozen_blocks](x)
        taps = [tap - frozen_blocks for tap in self._taps]
        maps = tapped(blocks[frozen_blocks:], taps, x)
        return self._head[0](maps[-1].mean((2, 3))), maps

    @property
    def linear(self) -> nn.Linear:
        """The layer of ten logits."""
        layer = self._head[0].get_submodule("1")
        assert isinstance(layer, nn.Linear)
        return layer

    def fresh_parameters(self) -> list[nn.Parameter]:
        """Those that start at random and so learn faster: the head and the adapters."""
        return [*self._head[0].parameters(), *self.hints.parameters()]


def build_student(
    backbone: str,
    init: Path | None,
    dropout: float,
    seed: int,
    calibration: Tensor,
    teacher_channels: list[int],
    spec: PreprocessSpec,
) -> Student:
    """The student before training.

    Args:
        backbone: a key of :data:`~nima_training.distill.hints.TAPS`.
        init: ImageNet TFLite backbone to start from; None starts at random.
        dropout: rate before the head.
        seed: of the random part.
        calibration: uint8 ``[B, S, S, 3]``, on which batch norms get their statistics.
        teacher_channels: of the teacher's tapped maps.
        spec: normalisation of the calibration views.

    Raises:
        ValueError: a backbone that has no taps, or an ``init`` that does not fit it.
    """
    if backbone not in TAPS:
        raise ValueError(f"cannot distil into {backbone!r}; known: {', '.join(sorted(TAPS))}")
    torch.manual_seed(seed)
    model = create_model(backbone, weights="none", dropout=dropout)
    if init is not None:
        load_folded(model, read_tflite(init).layers)
        calibrate_batch_norm(model, network_input(calibration.numpy(), spec).split(32))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Student(model, backbone, teacher_channels).to(device)
