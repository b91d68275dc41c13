"""Triton Python model ``nima_preprocess`` of ``default`` and ``embedded-gpu``: IMAGE to PIXELS.

Same contract and parameters as ``model.py``, but for the gate, and ``host_below``: requests of
fewer images hand on their pixels through the host. All requests that Triton merged are decoded as
one batch; each is answered, or refused, by itself.
"""

import io
import json

import numpy as np
import triton_python_backend_utils as pb_utils
from gpu_pixels import on_gpu
from PIL import Image

from nima_client._stall import StallWatch
from nima_client.contract import (
    INPUT_IMAGE,
    LOGGED_ID_CHARACTERS,
    PIXELS,
    Rejection,
    format_rejections,
)
from nima_client.preprocess import ImageRejected, Limits, PreprocessSpec, silence_libtiff


class TritonPythonModel:
    """Decodes and resizes on the GPU Triton put this instance on."""

    def initialize(self, args):
        """Read the parameters and run every part once."""
        config = json.loads(args["model_config"])
        parameters = {k: v["string_value"] for k, v in config["parameters"].items()}
        spec = PreprocessSpec.from_dict(json.loads(parameters["preprocessing"]))
        limits = Limits(int(parameters["max_bytes"]), int(parameters["max_pixels"]))
        # This process is ours: our limit replaces Pillow's own, and the log is not for uploaders.
        Image.MAX_IMAGE_PIXELS = None
        silence_libtiff()
        on_device = args["model_instance_kind"] == "GPU"
        device_id = int(args["model_instance_device_id"]) if on_device else None
        host_below = int(parameters.get("host_below", "0"))
        batch = int(config["max_batch_size"])
        self._pixels = on_gpu(spec, limits, device_id, _log_gpu_failure, host_below, batch)
        photos = []
        for name, count in (("JPEG", batch), ("PNG", 1)):
            photo = io.BytesIO()
            Image.new("RGB", (640, 480), (90, 120, 150)).save(photo, name)
            photos += [photo.getvalue()] * count
        self._answered = self._pixels([photos])
        self._watch = StallWatch(args["model_name"])

    def execute(self, requests):
        """One response per request, in order."""
        with self._watch.work():
            return self._answers(requests)

    def _answers(self, requests):
        files = [
            list(pb_utils.get_input_tensor_by_name(request, INPUT_IMAGE).as_numpy().reshape(-1))
            for request in requests
        ]
        try:
            # Kept until the next batch: Triton copies out of them after this has returned.
            self._answered = self._pixels(files)
            return [
                self._refuse(request, found)
                if isinstance(found, list)
                else pb_utils.InferenceResponse([_tensor(found)])
                for request, found in zip(requests, self._answered)
            ]
        except Exception as error:
            # A lost device: no request of the batch can be answered.
            failure = f"preprocessing failed: {type(error).__name__}"
            pb_utils.Logger.log_error(f"{failure}: {error}")
            return [_failed(failure, pb_utils.TritonError.INTERNAL) for _ in requests]

    def _refuse(self, request, found):
        broken = [error for _, error in found if not isinstance(error, ImageRejected)]
        if broken:
            kind = type(broken[0]).__name__
            _log("nima_failed", request, error=kind)
            return _failed(f"preprocessing failed: {kind}", pb_utils.TritonError.INTERNAL)
        rejections = [Rejection(index, error.code, error.detail) for index, error in found]
        codes = sorted({rejection.code.value for rejection in rejections})
        _log("nima_rejected", request, images=len(rejections), codes=codes)
        return _failed(format_rejections(rejections), pb_utils.TritonError.INVALID_ARG)


def _tensor(found):
    if isinstance(found, np.ndarray):
        return pb_utils.Tensor(PIXELS, found)
    return pb_utils.Tensor.from_dlpack(PIXELS, found)


def _log_gpu_failure(error):
    pb_utils.Logger.log_warn(f"decoded on the CPU, since the GPU failed: {error}")


def _log(event, request, **facts):
    """One line of JSON in Triton's log, with the id under which the client knows the request."""
    request_id = request.request_id()[:LOGGED_ID_CHARACTERS]
    line = json.dumps({"event": event, "request_id": request_id, **facts})
    pb_utils.Logger.log_info(line)


def _failed(message, code):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
