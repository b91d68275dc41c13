"""From a checkpoint to a model repository that Triton serves."""

import os

# ONNX Runtime (1.32) sends its maker what it runs and on what, unless told not to before it is
# imported. Processes that are started here inherit it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
