"""The network step as most Triton tutorials write it: ONNX Runtime in the Python backend."""

import os

import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """INPUT (FP32 [3, S, S]) to scores."""

    def initialize(self, args):
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # tuned: an instance a core
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )

    def execute(self, requests):
        names = ["DISTRIBUTION", "MEAN", "STD"]
        responses = []
        for request in requests:
            batch = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
            outputs = self.session.run(names, {self.session.get_inputs()[0].name: batch})
            tensors = [pb_utils.Tensor(n, o) for n, o in zip(names, outputs)]
            responses.append(pb_utils.InferenceResponse(tensors))
        return responses
