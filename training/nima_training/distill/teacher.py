"""The teacher: a published TFLite NIMA, as labels in float and as the judge in its own integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nima_training import distribution
from nima_training.distill.hints import TAPS, channels, tapped
from nima_training.folded import with_folded_norms
from nima_training.imports import import_weights

BATCH = 16


class TFLiteTeacher:
    """``teacher(pixels)``: uint8 ``[B, S, S, 3]`` to FP32 distributions ``[B, 10]``.

    The file in the interpreter it was published for: what agreement is measured against. Pixels
    are scaled to ``x / 127.5 - 1`` as in idealo/image-quality-assessment.
    """

    def __init__(self, path: str | Path, threads: int = 1) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(str(path), num_threads=threads)
        self._batch = 0

    def _allocate(self, batch: int, size: int) -> None:
        index = self._interpreter.get_input_details()[0]["index"]
        self._interpreter.resize_tensor_input(index, [batch, size, size, 3])
        self._interpreter.allocate_tensors()
        self._batch = batch

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Label a batch."""
        results = []
        for start in range(0, len(pixels), BATCH):
            chunk = pixels[start : start + BATCH]
            if self._batch != len(chunk):
                self._allocate(len(chunk), chunk.shape[1])
            source = self._interpreter.get_input_details()[0]["index"]
            target = self._interpreter.get_output_details()[0]["index"]
            self._interpreter.set_tensor(source, chunk.astype(np.float32) / 127.5 - 1)
            self._interpreter.invoke()
            results.append(self._interpreter.get_tensor(target).copy())
        return np.concatenate(results)


class FloatTeacher:
    """The same network dequantised: labels without rounding noise, any size, and feature maps."""

    def __init__(self, path: str | Path) -> None:
        imported = import_weights(path)
        network = with_folded_norms(imported.model).eval()
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        blocks = network.get_submodule("features")
        assert isinstance(blocks, nn.Sequential)
        self._blocks, self._head = blocks, network.get_submodule("classifier")
        self._taps = TAPS[imported.backbone]
        self.channels = channels(blocks, self._taps)

    def to(self, device: torch.device) -> FloatTeacher:
        """Move to ``device``."""
        self._blocks.to(device)
        self._head.to(device)
        return self

    @torch.no_grad()
    def __call__(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Normalised FP32 ``[B, 3, S, S]`` to distributions ``[B, 10]`` and feature maps."""
        maps = tapped(self._blocks, self._taps, x)
        return distribution.probabilities(self._head(maps[-1].float().mean((2, 3)))), maps
