"""Triton Python model ``nima_network``: runs the package of ``nima build --target inductor``.

Same contract as ``model.py``, on a GPU with PyTorch alone. All requests that Triton merged are
scored as one batch, from the CPU or from the GPU memory they come in, and answered from the CPU. It
starts only with a package that belongs to the network beside it, to this PyTorch and to this GPU.

Parameters of the model config: ``device``, e.g. ``cuda:1`` or ``cpu`` (that of the instance where
it says nothing); ``gate``, a file of :mod:`nima_client._gate` that tells the step before how far
this one is; ``host_below``, that of the step before, which hands on the pixels of so many images
and more on the GPU. Where Triton's pool of GPU memory is full, its Python backend (2.51, and the
newest in 2026) hands on memory of the host that it has not written, with whatever is in it:
``PbMemory::CopyBuffer`` does not know pinned memory. Such a request is refused, to be sent again.
"""

import json
import math
import os

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from compiled import CompiledNetwork

from nima_client._gate import open_gate
from nima_client._package import PACKAGE_NAME
from nima_client._stall import StallWatch
from nima_client.contract import OUTPUT_DISTRIBUTION, OUTPUT_MEAN, OUTPUT_STD, PIXELS

_LOST = "the server's pool of GPU memory was full, and the pixels did not arrive: send it again"


class TritonPythonModel:
    """One package, one stream and one set of CUDA graphs an instance."""

    def initialize(self, args):
        """Load the package and run its smallest and its largest batch."""
        config = json.loads(args["model_config"])
        parameters = {k: v["string_value"] for k, v in config["parameters"].items()}
        on_gpu = args["model_instance_kind"] == "GPU"
        device = f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu"
        device = parameters.get("device", device)
        path = os.path.join(args["model_repository"], args["model_version"], PACKAGE_NAME)
        # An instance is a process: on the CPU its work is copying, and the cores are the decoders'.
        torch.set_num_threads(1)
        try:
            if device != "cpu" and not torch.cuda.is_available():
                raise RuntimeError(f"PyTorch {torch.__version__} finds no CUDA device")
            batch = int(config["max_batch_size"])
            self._network = CompiledNetwork(path, device, max_batch=batch)
        except Exception as error:
            raise pb_utils.TritonModelException(_line(error)) from error
        if self._network.graph_error:
            reason = self._network.graph_error
            pb_utils.Logger.log_warn(f"no CUDA graphs, batches take longer: {reason}")
        self._gate = open_gate(parameters)
        self._host_below = int(parameters.get("host_below", "0")) or math.inf
        self._watch = StallWatch(args["model_name"])

    def execute(self, requests):
        """One response per request, in order."""
        try:
            with self._watch.work():
                return self._answer(requests)
        except Exception as error:
            # A lost device, a full one: no request of the batch can be answered.
            failure = f"scoring failed: {type(error).__name__}: {_line(error)}"
            pb_utils.Logger.log_error(failure)
            code = pb_utils.TritonError.INTERNAL
            return [
                pb_utils.InferenceResponse(error=pb_utils.TritonError(failure, code))
                for _ in requests
            ]

    def _answer(self, requests):
        pieces = [_pixels(request) for request in requests]
        written = [piece for piece in pieces if not self._is_lost(piece)]
        with self._gate.taken(sum(len(piece) for piece in pieces)):
            scores = self._network(written) if written else np.empty((0, 12), np.float32)
        # Three copies here make every slice below contiguous, which Triton would copy otherwise.
        columns = (
            (OUTPUT_DISTRIBUTION, np.ascontiguousarray(scores[:, :10])),
            (OUTPUT_MEAN, np.ascontiguousarray(scores[:, 10:11])),
            (OUTPUT_STD, np.ascontiguousarray(scores[:, 11:])),
        )
        responses, start = [], 0
        for piece in pieces:
            if self._is_lost(piece):
                code = pb_utils.TritonError.UNAVAILABLE
                responses.append(
                    pb_utils.InferenceResponse(error=pb_utils.TritonError(_LOST, code))
                )
                continue
            end = start + len(piece)
            tensors = [pb_utils.Tensor(name, column[start:end]) for name, column in columns]
            responses.append(pb_utils.InferenceResponse(tensors))
            start = end
        return responses

    def _is_lost(self, piece):
        return piece.device.type == "cpu" and len(piece) >= self._host_below


def _pixels(request):
    tensor = pb_utils.get_input_tensor_by_name(request, PIXELS)
    if tensor.is_cpu():
        return torch.from_numpy(tensor.as_numpy())
    return torch.from_dlpack(tensor.to_dlpack())


def _line(error):
    return " ".join(str(error).split())[:500]
