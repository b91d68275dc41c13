"""Run an engine on the GPU of this machine, for the parity gate and the GPU check.

Triton serves engines with its own backend; this is TensorRT's Python runtime, synchronous and
simple.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nima_build.engine_manifest import EngineManifest
from nima_build.tensorrt_api import EngineError, load_runtime, make_logger
from nima_client.contract import (
    NUM_RATINGS,
    OUTPUT_DISTRIBUTION,
    OUTPUT_MEAN,
    OUTPUT_STD,
    PIXELS,
)

_OUTPUTS = (OUTPUT_DISTRIBUTION, OUTPUT_MEAN, OUTPUT_STD)


class EngineRunner:
    """An engine loaded by TensorRT, with buffers for its largest batch.

    Args:
        plan: engine file of `nima build --target tensorrt`.

    Raises:
        EngineError: no TensorRT, no CUDA, or an engine TensorRT does not load.
    """

    def __init__(self, plan: Path) -> None:
        trt = load_runtime("tensorrt")
        try:
            from cuda.bindings import runtime as cuda
        except ModuleNotFoundError as error:
            raise EngineError("running an engine needs cuda-bindings (extra tensorrt)") from error
        self._cuda: Any = cuda
        self._buffers: dict[str, int] = {}
        self._stream: Any = None
        self._logger = make_logger(trt)
        try:
            self._runtime = trt.Runtime(self._logger)
        except TypeError as error:  # how pybind11 says that the constructor returned nothing
            raise EngineError(f"TensorRT {trt.__version__} does not start{self._why()}") from error
        # A version-compatible engine carries the runtime it was built with, which is host code.
        options = EngineManifest.load(plan).options
        self._runtime.engine_host_code_allowed = options.version_compatible
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise EngineError(f"TensorRT {trt.__version__} does not load {plan}{self._why()}")
        self._context = self._engine.create_execution_context()
        largest = self._engine.get_tensor_profile_shape(PIXELS, 0)[2]
        self.max_batch = int(largest[0])
        self._image = tuple(int(n) for n in largest[1:])
        self._widths = {OUTPUT_DISTRIBUTION: NUM_RATINGS, OUTPUT_MEAN: 1, OUTPUT_STD: 1}
        sizes = {PIXELS: self.max_batch * int(np.prod(self._image))}
        sizes |= {name: self.max_batch * width * 4 for name, width in self._widths.items()}
        try:
            self._stream = self._call(cuda.cudaStreamCreate())
            for name, size in sizes.items():
                self._buffers[name] = int(self._call(cuda.cudaMalloc(size)))
                self._context.set_tensor_address(name, self._buffers[name])
        except EngineError:
            self.close()
            raise

    def upload(self, pixels: npt.NDArray[Any]) -> None:
        """Copy uint8 ``[B, S, S, 3]`` to the GPU and set the batch size."""
        if len(pixels) > self.max_batch or pixels.shape[1:] != self._image:
            raise ValueError(f"the engine takes up to {self.max_batch} x {self._image}")
        pixels = np.ascontiguousarray(pixels)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(
            self._cuda.cudaMemcpy(self._buffers[PIXELS], pixels.ctypes.data, pixels.nbytes, kind)
        )
        self._context.set_input_shape(PIXELS, pixels.shape)

    def execute(self) -> None:
        """Run what was uploaded, and wait for it."""
        if not self._context.execute_async_v3(int(self._stream)):
            raise EngineError("TensorRT could not run the engine")
        self._call(self._cuda.cudaStreamSynchronize(self._stream))

    def run(self, pixels: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
        """Distribution ``[B, 10]``, mean ``[B, 1]`` and std ``[B, 1]`` of uint8 ``[B, S, S, 3]``.

        More images than the engine takes at once are run in several batches.
        """
        size = self.max_batch
        batches = [self._run(pixels[i : i + size]) for i in range(0, len(pixels), size)]
        return tuple(np.concatenate(outputs) for outputs in zip(*batches, strict=True))

    def _run(self, pixels: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
        self.upload(pixels)
        self.execute()
        results = []
        for name in _OUTPUTS:
            result = np.empty((len(pixels), self._widths[name]), np.float32)
            kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
            self._call(
                self._cuda.cudaMemcpy(result.ctypes.data, self._buffers[name], result.nbytes, kind)
            )
            results.append(result)
        return tuple(results)

    def close(self) -> None:
        """Free the GPU memory; a second time does nothing."""
        for pointer in self._buffers.values():
            self._cuda.cudaFree(pointer)
        self._buffers.clear()
        if self._stream is not None:
            self._cuda.cudaStreamDestroy(self._stream)
            self._stream = None

    def _why(self) -> str:
        return f": {'; '.join(self._logger.errors)}" if self._logger.errors else ""

    def _call(self, answer: Any) -> Any:
        status, *values = answer
        if int(status) != 0:
            raise EngineError(f"CUDA: {status!r}")
        return values[0] if values else None
