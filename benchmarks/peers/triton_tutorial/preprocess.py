"""The preprocessing step as most Triton tutorials write it: Pillow, then FP32 pixels in numpy."""

import io
import json

import numpy as np
import triton_python_backend_utils as pb_utils
from PIL import Image


class TritonPythonModel:
    """IMAGE (BYTES) to INPUT (FP32 [3, S, S], normalised)."""

    def initialize(self, args):
        config = json.loads(args["model_config"])
        spec = json.loads(config["parameters"]["preprocessing"]["string_value"])
        self.side = spec["crop_size"]
        self.mean = np.array(spec["mean"], np.float32)
        self.std = np.array(spec["std"], np.float32)

    def execute(self, requests):
        responses = []
        for request in requests:
            batch = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()
            tensors = []
            for row in batch:
                image = Image.open(io.BytesIO(row[0])).convert("RGB")
                image = image.resize((self.side, self.side), Image.BILINEAR)
                array = np.array(image, dtype=np.float32) / 255.0
                array = (array - self.mean) / self.std
                tensors.append(array.transpose(2, 0, 1))
            tensor = pb_utils.Tensor("INPUT", np.stack(tensors).astype(np.float32))
            responses.append(pb_utils.InferenceResponse([tensor]))
        return responses
