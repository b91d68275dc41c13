"""Pixels that only the caller has (a PIL image, an array) as the bytes of a PNG file."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from nima_client import _defaults
from nima_client.contract import RejectionCode
from nima_client.preprocess import ImageRejected

if TYPE_CHECKING:
    from PIL import Image


def encode_pil(image: Image.Image) -> bytes:
    """A PIL image as the file that a viewer would show.

    Raises:
        OSError: its pixels cannot be read.
        ImageRejected: EMPTY, it has none.
        TypeError: of a mode without a fixed range.
    """
    from PIL import Image

    from nima_client.preprocess._decode import SIXTEEN_BIT_MODES, upright
    from nima_client.preprocess._header import orientation_in_exif

    try:
        image.load()
    except (OSError, ValueError, MemoryError):
        raise
    except Exception as error:  # an image that is still to be decoded
        if getattr(image, "fp", image) is None:
            why = "its file was closed before its pixels were read: call its load() before"
        else:  # from a damaged file
            why = str(error) or type(error).__name__
        raise OSError(why) from error
    # As a file would be shown: PNG carries no orientation that the server could apply.
    shown = upright(image.copy(), orientation_in_exif(image))
    if shown.mode in ("F", "I"):
        raise TypeError(f"a PIL image of mode {shown.mode!r} has no fixed range: use RGB")
    if shown.mode in SIXTEEN_BIT_MODES and shown.mode != "I;16":
        import numpy as np

        # PNG's 16 bits; convert() would clip every shade above 255 to white.
        shown = Image.fromarray(np.asarray(shown).astype(np.uint16))
    if shown.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        with_alpha = {"PA": "RGBA", "RGBa": "RGBA", "La": "LA"}
        shown = shown.convert(with_alpha.get(shown.mode, "RGB"))
    if 0 in shown.size:
        raise ImageRejected(RejectionCode.EMPTY, "a PIL image without pixels")
    buffer = io.BytesIO()
    # Nobody asks for the colour profile; of one beyond a megabyte Pillow refuses the file.
    shown.save(buffer, "PNG", compress_level=_defaults.PNG_COMPRESS_LEVEL, icc_profile=None)
    return buffer.getvalue()


def encode_array(array: Any) -> bytes:
    """A uint8 array of the shape [H, W, 3], [H, W], [H, W, 1] or [H, W, 4].

    Raises:
        ImageRejected: EMPTY, it has no pixels.
        TypeError: of another dtype or shape.
    """
    import numpy as np
    from PIL import Image

    pixels = np.asarray(array)
    if pixels.dtype != np.uint8:
        raise TypeError(
            f"an array must be uint8 with values 0..255; this is {pixels.dtype}. "
            "For floats in 0..1: (array * 255).round().astype('uint8')"
        )
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim != 2 and not (pixels.ndim == 3 and pixels.shape[2] in (3, 4)):
        raise TypeError(
            f"an array must have the shape [H, W, 3], [H, W], [H, W, 1] or [H, W, 4]; "
            f"this is {list(pixels.shape)}"
            + (" (channels first: use array.transpose(1, 2, 0))" if _channels_first(pixels) else "")
        )
    if pixels.size == 0:
        raise ImageRejected(RejectionCode.EMPTY, "an array without pixels")
    return encode_pil(Image.fromarray(np.ascontiguousarray(pixels)))


def _channels_first(pixels: Any) -> bool:
    return pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4)
