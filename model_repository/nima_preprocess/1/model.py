"""Triton Python model ``nima_preprocess``: IMAGE (BYTES [B, 1]) to PIXELS (UINT8 [B, S, S, 3]).

A request whose images cannot all be decoded fails as a whole with INVALID_ARGUMENT, naming every
bad index; requests that were merged into the same batch are not touched by it.

Parameters of the model config (strings): ``preprocessing`` (JSON of the specification),
``max_bytes`` and ``max_pixels`` (limits of one image, checked before decoding); ``niceness``
(optional: how far this process steps back for others on the same cores, as ``nice`` counts);
``gate`` and ``gate_limit`` (optional: file of :mod:`nima_client._gate`, and how many images may be
between this step and the next).
"""

import io
import json
import os

import numpy as np
import triton_python_backend_utils as pb_utils
from PIL import Image

from nima_client._gate import open_gate
from nima_client._stall import StallWatch
from nima_client.contract import (
    INPUT_IMAGE,
    LOGGED_ID_CHARACTERS,
    PIXELS,
    Rejection,
    format_rejections,
)
from nima_client.preprocess import (
    ImageRejected,
    Limits,
    PreprocessSpec,
    preprocess,
    silence_libtiff,
)


class TritonPythonModel:
    """Decodes and resizes on the CPU."""

    def initialize(self, args):
        """Read the parameters and warm up the decoder."""
        config = json.loads(args["model_config"])
        parameters = {k: v["string_value"] for k, v in config["parameters"].items()}
        self._spec = PreprocessSpec.from_dict(json.loads(parameters["preprocessing"]))
        self._limits = Limits(int(parameters["max_bytes"]), int(parameters["max_pixels"]))
        os.nice(int(parameters.get("niceness", "0")))
        self._gate = open_gate(parameters)
        # This process is ours: our limit replaces Pillow's own, and the log is not for uploaders.
        Image.MAX_IMAGE_PIXELS = None
        silence_libtiff()
        photo = io.BytesIO()
        Image.new("RGB", (640, 480), (90, 120, 150)).save(photo, "JPEG")
        preprocess(photo.getvalue(), self._spec)
        self._watch = StallWatch(args["model_name"])

    def execute(self, requests):
        """One response per request, in order."""
        with self._watch.work():
            return [self._guarded(request) for request in requests]

    def _guarded(self, request):
        """Whatever goes wrong (no memory, say) is this request's failure, no neighbour's."""
        try:
            return self._answer(request)
        except Exception as error:
            _log("nima_failed", request, error=type(error).__name__)
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(
                    f"preprocessing failed: {type(error).__name__}", pb_utils.TritonError.INTERNAL
                )
            )

    def _answer(self, request):
        self._gate.wait()
        images = pb_utils.get_input_tensor_by_name(request, INPUT_IMAGE).as_numpy().reshape(-1)
        side = self._spec.crop_size
        pixels = np.empty((len(images), side, side, 3), np.uint8)
        rejections = []
        for index, data in enumerate(images):
            try:
                pixels[index] = preprocess(data, self._spec, self._limits)
            except ImageRejected as error:
                rejections.append(Rejection(index, error.code, error.detail))
        if rejections:
            codes = sorted({rejection.code.value for rejection in rejections})
            _log("nima_rejected", request, images=len(rejections), codes=codes)
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(
                    format_rejections(rejections), pb_utils.TritonError.INVALID_ARG
                )
            )
        self._gate.passed(len(images))
        return pb_utils.InferenceResponse([pb_utils.Tensor(PIXELS, pixels)])


def _log(event, request, **facts):
    """One line of JSON in Triton's log, with the id under which the client knows the request."""
    request_id = request.request_id()[:LOGGED_ID_CHARACTERS]
    line = json.dumps({"event": event, "request_id": request_id, **facts})
    pb_utils.Logger.log_info(line)
