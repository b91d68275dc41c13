"""TensorRT's Python module, whichever of them a machine has, and what its builder calls back.

TensorRT 10 and 11 (``tensorrt``) serve; TensorRT for RTX (``tensorrt_rtx``) has the same builder
and compiles without a GPU.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

Target = Literal["tensorrt", "tensorrt-rtx"]
Progress = Callable[[str, int, int], None]
"""Called with a phase's name, the steps done and the steps there are."""

_MODULES = {
    # The bindings' wheel by itself carries the module under its second name; it finds the
    # libraries of a tritonserver image, or those of the wheel beside it.
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
_LIBRARIES = {"tensorrt": "libnvinfer.so", "tensorrt-rtx": "libtensorrt_rtx.so"}
_INSTALL = {
    "tensorrt": "pip install 'nima-triton[tensorrt]', or run inside the tritonserver image",
    "tensorrt-rtx": "pip install 'nima-triton[tensorrt-rtx]'",
}


class EngineError(RuntimeError):
    """No engine can be built here, or TensorRT refuses the graph; the message says which."""


def load_runtime(target: Target) -> Any:
    """The TensorRT module of a target.

    Raises:
        EngineError: it is not installed, does not load, or is not of the version of its library.
    """
    for name in _MODULES[target]:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            continue
        except (ImportError, OSError) as error:
            reason = " ".join(str(error).split())
            raise EngineError(f"TensorRT is installed but does not load: {reason}") from error
        library = library_version(target)
        numbers = [int(part) for part in module.__version__.split(".") if part.isdigit()]
        if library and numbers != library:
            here = ".".join(map(str, library))
            raise EngineError(
                f"TensorRT's Python bindings are {module.__version__}, its library is {here}: "
                "install the bindings of that version"
            )
        return module
    raise EngineError(f"TensorRT is not installed ({_INSTALL[target]})")


def library_version(target: Target) -> list[int]:
    """Major, minor, patch and build of the TensorRT library this process loaded.

    The bindings only know their own version, and load any library of the same major: in an image
    of another tag an engine would carry the wrong version. Empty where the library does not say.
    """
    try:
        mapped = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    paths = {line.split(maxsplit=5)[-1] for line in mapped if _LIBRARIES[target] in line}
    for path in sorted(paths):
        library = ctypes.CDLL(path)
        try:
            return [
                int(getattr(library, f"getInferLib{part}Version")())
                for part in ("Major", "Minor", "Patch", "Build")
            ]
        except AttributeError:
            continue
    return []


def make_logger(trt: Any) -> Any:
    """A logger that keeps TensorRT's errors in ``errors`` instead of printing them."""

    class Collector(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split()))

    return Collector()


def make_monitor(trt: Any, progress: Progress) -> Any:
    """A monitor that passes the builder's phases on; TensorRT calls it from its own threads."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            progress(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress(phase_name, step + 1, self.steps.get(phase_name, step + 1))
            return True

        def phase_finish(self, phase_name: str) -> None:
            steps = self.steps.pop(phase_name, 0)
            progress(phase_name, steps, steps)

    return Monitor()
