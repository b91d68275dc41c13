"""Triton Python model ``nima_network``: runs an ONNX graph in ONNX Runtime, on the CPU.

Only the ``embedded`` profile uses it; the others name a native backend for the same files.
Every image is run by itself: on a CPU a batch gains nothing, and so a photo's score is equal to
the bit whether it came alone or with others.

Parameters of the model config: ``graph``, the file to run (``model.onnx`` where it says nothing);
``gate``, a file of :mod:`nima_client._gate` that tells the step before how far this one is.
"""

import json
import os

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

from nima_client._gate import open_gate
from nima_client._stall import StallWatch
from nima_client.contract import OUTPUT_DISTRIBUTION, OUTPUT_MEAN, OUTPUT_STD, PIXELS

_OUTPUTS = [OUTPUT_DISTRIBUTION, OUTPUT_MEAN, OUTPUT_STD]


class TritonPythonModel:
    """One ONNX Runtime session an instance, one thread a session."""

    def initialize(self, args):
        """Load the graph and run it once."""
        options = onnxruntime.SessionOptions()
        # One thread an instance and an instance a core: spinning threads halve the throughput.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        config = json.loads(args["model_config"])
        parameters = {k: v["string_value"] for k, v in config["parameters"].items()}
        graph = parameters.get("graph", "model.onnx")
        self._gate = open_gate(parameters)
        onnx = os.path.join(args["model_repository"], args["model_version"], graph)
        self._session = onnxruntime.InferenceSession(
            onnx, options, providers=["CPUExecutionProvider"]
        )
        dims = [int(d) for d in config["input"][0]["dims"]]
        self._session.run(_OUTPUTS, {PIXELS: np.zeros((1, *dims), np.uint8)})
        self._watch = StallWatch(args["model_name"])

    def execute(self, requests):
        """One response per request, in order."""
        with self._watch.work():
            return [self._answer(request) for request in requests]

    def _answer(self, request):
        pixels = pb_utils.get_input_tensor_by_name(request, PIXELS).as_numpy()
        with self._gate.taken(len(pixels)):
            rows = [self._session.run(_OUTPUTS, {PIXELS: image[None]}) for image in pixels]
        columns = rows[0] if len(rows) == 1 else [np.concatenate(c) for c in zip(*rows)]
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, column) for name, column in zip(_OUTPUTS, columns)]
        )
