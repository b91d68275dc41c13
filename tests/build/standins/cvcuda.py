"""In the place of CV-CUDA, which does not import without a GPU: its names and signatures on numpy.

Taken from the type stubs of the wheel cvcuda-cu12 0.19.0 (arguments, which of them are
keyword-only, layouts); the resize is Pillow's. So gpu_model.py runs to its end in a real
tritonserver, and what it asks of CV-CUDA is what CV-CUDA offers. That CV-CUDA's kernels give
Pillow's pixels is not shown by it.
"""

from __future__ import annotations

import enum
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image


class Interp(enum.Enum):
    LINEAR = Image.Resampling.BILINEAR
    CUBIC = Image.Resampling.BICUBIC


class Format(enum.Enum):
    RGB8 = "RGB"


class Type:
    U8 = np.dtype(np.uint8)


class Stream:
    handle = 0

    def sync(self) -> None:
        """Nothing is asynchronous here."""


class RectI:
    def __init__(self, x: int, y: int, width: int, height: int) -> None:
        self.x, self.y, self.width, self.height = x, y, width, height


class ExternalBuffer:
    """Speaks DLPack and CUDA's array interface, of memory that is the host's.

    The capsule is torch's, which as CV-CUDA's is left alone once it was taken. numpy's would insist
    on the name "used_dltensor", where Triton says "used_dlpack".
    """

    def __init__(self, array: np.ndarray) -> None:
        self.__cuda_array_interface__ = array.__array_interface__
        self._array = array

    def __dlpack__(self, stream: object = 1, max_version: object | None = None) -> object:
        return torch.from_numpy(self._array).__dlpack__()

    def __dlpack_device__(self) -> tuple:
        return (1, 0)


class Tensor:
    def __init__(self, shape: tuple, dtype: np.dtype, layout: str | None = None, rowalign: int = 0):
        self.array = np.zeros(shape, dtype)
        self.layout = layout

    @property
    def shape(self) -> tuple:
        return self.array.shape

    def cuda(self) -> ExternalBuffer:
        """The buffer behind the tensor."""
        return ExternalBuffer(self.array)


def _tensor(array: np.ndarray, layout: str) -> Tensor:
    tensor = Tensor(array.shape, array.dtype, layout)
    tensor.array = array
    return tensor


def _array(buffer: object) -> np.ndarray:
    """What is behind a decoded image of nvImageCodec (on the host), or behind an address."""
    if hasattr(buffer, "__array_interface__"):
        return np.asarray(buffer)
    interface = buffer.__cuda_array_interface__
    assert interface["version"] == 3

    host = SimpleNamespace()
    host.__array_interface__ = {key: interface[key] for key in interface if key != "stream"}
    return np.asarray(host)


def as_tensor(buffer: object, layout: str | None = None) -> Tensor:
    array = _array(buffer)
    assert layout == "HWC"
    assert array.ndim == 3
    assert array.shape[2] == 3
    return _tensor(array, layout)


class ImageBatchVarShape:
    def __init__(self, arrays: list[np.ndarray]) -> None:
        self.arrays = arrays


def as_images(buffers: list[object], format: Format) -> ImageBatchVarShape:
    assert format is Format.RGB8
    return ImageBatchVarShape([_array(buffer) for buffer in buffers])


def pillowresize(
    src: Tensor, shape: tuple, format: Format, interp: Interp, *, stream: Stream | None = None
) -> Tensor:
    assert src.layout == "HWC"
    assert format is Format.RGB8
    height, width, channels = shape
    assert channels == 3
    image = Image.fromarray(src.array).resize((width, height), interp.value)
    return _tensor(np.array(image), "HWC")


def pillowresize_into(
    dst: ImageBatchVarShape,
    src: ImageBatchVarShape,
    interp: Interp,
    *,
    stream: Stream | None = None,
) -> ImageBatchVarShape:
    for target, source in zip(dst.arrays, src.arrays, strict=True):
        height, width, _ = target.shape
        target[:] = Image.fromarray(source).resize((width, height), interp.value)
    return dst


def customcrop_into(
    dst: Tensor, src: Tensor, rect: RectI, *, stream: Stream | None = None
) -> Tensor:
    assert dst.layout == src.layout == "HWC"
    rows, columns = slice(rect.y, rect.y + rect.height), slice(rect.x, rect.x + rect.width)
    dst.array[:] = src.array[rows, columns]
    return dst


def set_cache_limit_inbytes(limit: int) -> None:
    assert limit >= 0
