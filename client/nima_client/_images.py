"""From what callers have (path, bytes, file, PIL, array) to the encoded bytes that travel.

Lossless wherever the caller's pixels are known only to the caller: arrays and PIL images go as PNG.
Files go as they are, untouched, but for HEIC, which no server reads. Limits are checked on the
header, before anything is uploaded.
"""

from __future__ import annotations

import inspect
import io
import os
import stat
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Union

from nima_client import _defaults
from nima_client._heic import decode_photo, is_heic
from nima_client._pixels import encode_array, encode_pil
from nima_client._quick_header import jpeg_size
from nima_client.contract import RejectionCode
from nima_client.errors import ImageRejectedError
from nima_client.preprocess import ImageRejected, Limits, inspect_header
from nima_client.preprocess._header import check_bytes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

ImageInput = Union[
    str,
    "os.PathLike[str]",
    bytes,
    bytearray,
    memoryview,
    BinaryIO,
    "Image.Image",
    "npt.NDArray[np.uint8]",
]
"""One image: a path, the bytes of an image file, a binary file object, a PIL image, or a uint8
array of shape [H, W, 3] (RGB), [H, W] or [H, W, 1] (grey) or [H, W, 4] (RGBA, shown on white)."""

_WHAT = (
    "a path, bytes, a binary file object, a PIL image or a uint8 array [H, W, 3] (also [H, W], "
    "[H, W, 1], [H, W, 4])"
)

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class PrepareOptions:
    """How images are made ready.

    Attributes:
        limits: largest size in bytes and in pixels.
        max_side: longest side in pixels above which a photo is made smaller; None leaves all alone.
    """

    limits: Limits
    max_side: int | None = _defaults.MAX_SIDE


@dataclass(frozen=True, slots=True)
class Prepared:
    """One image, ready to travel.

    Attributes:
        data: the encoded file.
        source: its name, when it came as a path or an open file.
    """

    data: bytes
    source: str | None = None


def source_of(image: object) -> str | None:
    """Name of the file behind an input, where it has one."""
    if isinstance(image, (str, os.PathLike)):
        return os.fsdecode(image)
    name = getattr(image, "name", None) if hasattr(image, "read") else None
    return name if isinstance(name, str) else None


def is_single_image(images: object) -> bool:
    """Whether somebody passed one image where a sequence of images is meant."""
    return (
        isinstance(images, (str, bytes, bytearray, memoryview, os.PathLike))
        or hasattr(images, "read")
        or _is_pil(images)
        or (_is_array(images) and getattr(images, "ndim", 0) < 4 and not _is_of_names(images))
    )


def exact_count(images: object) -> int | None:
    """Number of images in a sequence or an array of images; None where only reading tells."""
    return len(images) if isinstance(images, Sequence) or _is_array(images) else None  # type: ignore[arg-type]


def expected_count(images: object) -> int | None:
    """Number of images as far as their container says; None where it does not.

    Only a hint: a progress bar has the length that its caller guessed.
    """
    try:
        return len(images) if isinstance(images, Sized) else None
    except Exception:  # whatever its author has for "unknown"
        return None


def is_instant(image: object) -> bool:
    """Whether an input is ready without reading, encoding or decoding (so an event loop may)."""
    # Not a memoryview: of one that was released prepare() says so.
    return isinstance(image, (bytes, bytearray)) and not is_heic(image)


def prepare(image: ImageInput, options: PrepareOptions, index: int = 0) -> Prepared:
    """Make one image ready.

    Args:
        image: as :data:`ImageInput` says.
        options: limits and downscaling.
        index: position in the call's input, for the error.

    Raises:
        ImageRejectedError: the file or the image cannot be read (code ``UNREADABLE``), or the
            server would refuse the image (code of the contract).
        TypeError: not an image of a supported kind; says which kinds are.
    """
    source = source_of(image)
    try:
        data = _encode(image, options.limits)
        if is_heic(data):
            side = min(options.max_side or _defaults.HEIC_SIDE, _defaults.HEIC_SIDE)
            data = _to_jpeg(data, side, options.limits)
        size = _checked_size(data, options.limits)
        if options.max_side is not None and max(size) > options.max_side:
            data = _to_jpeg(data, options.max_side, options.limits)
    except ImageRejected as error:
        raise rejected(error.code.value, error.detail, index, source) from None
    except (OSError, ValueError) as error:
        # ValueError: a file or an image that was closed, a path with a null byte.
        raise rejected("UNREADABLE", _why_unreadable(error, source), index, source) from error
    return Prepared(data, source)


def rejected(
    code: str, detail: str, index: int, source: str | None, request_id: str = ""
) -> ImageRejectedError:
    """The exception for one refused image, worded the same wherever it was refused."""
    name = source if source is not None else f"image {index}"
    return ImageRejectedError(
        f"{name}: {code}: {detail}",
        code=code,
        index=index,
        detail=detail,
        source=source,
        request_id=request_id,
    )


def _encode(image: Any, limits: Limits) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, (bytearray, memoryview)):
        return bytes(image)
    if isinstance(image, (str, os.PathLike)):
        return _read(image, limits)
    if _is_pil(image):
        return encode_pil(image)
    if _is_array(image):
        return encode_array(image)
    if hasattr(image, "read"):
        return _read_on(image, limits)
    raise TypeError(f"an image is {_WHAT}; this is {type(image).__name__}")


def _read(path: str | os.PathLike[str], limits: Limits) -> bytes:
    with open(path, "rb") as file:
        known = os.fstat(file.fileno())
        # Not read at all: a folder of photos also holds videos.
        check_bytes(known.st_size, limits)
        if not stat.S_ISREG(known.st_mode):
            return _read_on(file, limits)
        data = file.read(known.st_size + 1)
        # One that grows, or whose system tells no size, may have no end.
        return data if len(data) <= known.st_size else data + _read_on(file, limits)


def _read_on(file: Any, limits: Limits) -> bytes:
    """All that an open file still has; no further than the limit, as it may have no end."""
    blocks: list[bytes] = []
    count = 0
    while block := _read_block(file):
        if isinstance(block, str):
            raise TypeError("the file object is in text mode: open it with mode 'rb'")
        if inspect.iscoroutine(block):
            block.close()
            raise TypeError(
                f"the read() of this {type(file).__name__} must be awaited: pass the bytes that it "
                "gives, or the file inside (of an UploadFile its .file)"
            )
        blocks.append(bytes(block))
        count += len(block)
        if count > limits.max_bytes:
            raise ImageRejected(
                RejectionCode.TOO_LARGE, f"more bytes than the limit of {limits.max_bytes}"
            )
    return blocks[0] if len(blocks) == 1 else b"".join(blocks)


def _read_block(file: Any) -> Any:
    try:
        return file.read(_BLOCK)
    except (OSError, ValueError, MemoryError, TypeError):
        raise
    except Exception as error:  # of an archive's damaged member, a connection that broke off
        raise OSError(str(error) or type(error).__name__) from error


def _why_unreadable(error: OSError | ValueError, source: str | None) -> str:
    why = " ".join((getattr(error, "strerror", None) or str(error)).split())
    if isinstance(error, IsADirectoryError):
        return f"{why}: pass its files, or use `nima score`"
    if source is not None and "://" in source:
        return f"{why}: nothing is fetched, pass the bytes"
    return why


def _checked_size(data: bytes, limits: Limits) -> tuple[int, int]:
    """Stored width and height, after the checks that need no decoding.

    Raises:
        ImageRejected: as :func:`nima_client.preprocess.inspect_header` says.
    """
    size = jpeg_size(data) if len(data) <= limits.max_bytes else None
    if size is not None and size[0] * size[1] <= limits.max_pixels:
        return size
    header = inspect_header(data, limits)
    return header.width, header.height


def _is_pil(image: object) -> bool:
    # Looked up by name, so that a caller of bytes and paths does not pay for importing Pillow.
    return any(c.__module__ == "PIL.Image" and c.__name__ == "Image" for c in type(image).__mro__)


def _is_array(image: object) -> bool:
    return hasattr(image, "__array_interface__") and hasattr(image, "dtype")


def _is_of_names(array: Any) -> bool:
    """Whether an array is a column of a table, of file names or other objects."""
    return array.ndim == 1 and array.dtype.kind in "OU"


def _to_jpeg(data: bytes, max_side: int, limits: Limits) -> bytes:
    """Re-encode a photo so that its longest side is ``max_side`` at most, as upright JPEG 4:4:4."""
    from PIL import Image

    from nima_client.preprocess import PreprocessSpec

    # The project's own decoder: orientation, alpha and 16 bit as the server would treat them. Asked
    # for max_side, its DCT scaling never goes below what is needed here.
    image = decode_photo(data, PreprocessSpec(resize_size=max_side, crop_size=max_side), limits)
    factor = max_side / max(image.size)
    if factor < 1.0:
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        image = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_defaults.DOWNSCALE_JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
