"""The teacher: a TFLite NIMA run by the interpreter it was published for."""

from __future__ import annotations

from pathlib import Path

import numpy as np

BATCH = 16


class TFLiteTeacher:
    """``teacher(pixels)``: uint8 ``[B, S, S, 3]`` to FP32 distributions ``[B, 10]``.

    Pixels are scaled to ``x / 127.5 - 1`` as in idealo/image-quality-assessment.
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
