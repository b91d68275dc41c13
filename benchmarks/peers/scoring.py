"""What every peer runs for one image: this project's decoder and network, in one thread.

Peers get the same fast decoder (``nima_client.preprocess``) and the same ONNX graph with the same
ONNX Runtime options as the product, so that what is compared is the serving. ``PillowScorer`` is
what people write when they start: a full decode with Pillow.

Environment: ``NIMA_ONNX`` (path of model.onnx), ``NIMA_SPEC`` (preprocessing as JSON),
``NIMA_PILLOW`` (1 takes :class:`PillowScorer`).
"""

from __future__ import annotations

import io
import json
import os

import numpy as np
import onnxruntime
from PIL import Image

from nima_client.contract import OUTPUT_DISTRIBUTION, OUTPUT_MEAN, OUTPUT_STD, PIXELS
from nima_client.preprocess import PreprocessSpec, preprocess

_OUTPUTS = [OUTPUT_DISTRIBUTION, OUTPUT_MEAN, OUTPUT_STD]


class Scorer:
    """Scores encoded images, one at a time."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            os.environ["NIMA_ONNX"], options, providers=["CPUExecutionProvider"]
        )
        self._spec = PreprocessSpec.from_dict(json.loads(os.environ["NIMA_SPEC"]))

    def pixels(self, data: bytes) -> np.ndarray:
        """uint8 [S, S, 3] of one file."""
        return preprocess(data, self._spec)

    def __call__(self, data: bytes) -> dict[str, object]:
        """Scores of one file, JSON-ready."""
        outputs = self._session.run(_OUTPUTS, {PIXELS: self.pixels(data)[None]})
        distribution, mean, std = outputs
        return {
            "mean": float(mean[0, 0]),
            "std": float(std[0, 0]),
            "distribution": distribution[0].tolist(),
        }


class PillowScorer(Scorer):
    """The same network behind a plain Pillow decode."""

    def pixels(self, data: bytes) -> np.ndarray:
        """uint8 [S, S, 3] of one file, decoded at full size."""
        image = Image.open(io.BytesIO(data)).convert("RGB")
        side = (self._spec.crop_size, self._spec.crop_size)
        return np.asarray(image.resize(side, Image.Resampling.BILINEAR))


def make_scorer() -> Scorer:
    """The scorer that the environment asks for."""
    return PillowScorer() if os.environ.get("NIMA_PILLOW") == "1" else Scorer()
