"""In the place of CV-CUDA, which does not import without a GPU: its names and signatures on numpy.

Taken from the type stubs of the wheel cvcuda-cu12 0.19.0 (arguments, which of them are
keyword-only, layouts); the resize is Pillow's. So gpu_model.py runs to its end in a real
tritonserver, and what it asks of CV-CUDA is what CV-CUDA offers. That CV-CUDA's kernels give
Pillow's pixels is not shown by it.
"""

from __future__ import annotations

import enum

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
    """Speaks DLPack, and the array interface as the real one speaks CUDA's.

    The capsule is torch's, which as CV-CUDA's is left alone once it was taken. numpy's would insist
    on the name "used_dltensor", where Triton says "used_dlpack".
    """

    def __init__(self, array: np.ndarray) -> None:
        self.__array_interface__ = array.__array_interface__
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


def as_tensor(buffer: object, layout: str | None = None) -> Tensor:
    array = np.asarray(buffer)
    assert layout == "HWC"
    assert array.ndim == 3
    assert array.shape[2] == 3
    return _tensor(array, layout)


def pillowresize(
    src: Tensor, shape: tuple, format: Format, interp: Interp, *, stream: Stream | None = None
) -> Tensor:
    assert src.layout == "HWC"
    assert format is Format.RGB8
    height, width, channels = shape
    assert channels == 3
    image = Image.fromarray(src.array).resize((width, height), interp.value)
    return _tensor(np.array(image), "HWC")


def customcrop(src: Tensor, rect: RectI, *, stream: Stream | None = None) -> Tensor:
    rows, columns = slice(rect.y, rect.y + rect.height), slice(rect.x, rect.x + rect.width)
    return _tensor(src.array[rows, columns], "HWC")


def stack_into(dst: Tensor, src: list[Tensor], *, stream: Stream | None = None) -> Tensor:
    assert dst.layout == "NHWC"
    assert all(tensor.layout == "HWC" for tensor in src)
    np.stack([tensor.array for tensor in src], out=dst.array)
    return dst


def set_cache_limit_inbytes(limit: int) -> None:
    assert limit >= 0
