"""Pillow's antialiased resize, five to ten times faster where ``cykooz.resizer`` is installed.

That package runs the same two-pass convolution with SIMD instructions. Called once per axis, in
Pillow's order, it gives Pillow's pixels but for its coarser coefficients: 0.06 % of the values of a
photo (at most 0.6 %) differ, by 1/255 (``tests/preprocess/test_resize.py``; benchmarks/NOTES.md has
what that does to the scores). Bicubic stays Pillow's: there the gap can be larger.
"""

from __future__ import annotations

import threading
from typing import Any

from PIL import Image

try:
    import cykooz_resizer
except ModuleNotFoundError:  # the bare client resizes with Pillow
    cykooz_resizer = None

OPAQUE_MODE = "CMYK"
"""Pillow's label for an image that is RGB and a fourth byte to be ignored.

Pillow stores RGB in four bytes anyway, so a decoder that writes four can hand over its buffer
without a copy. CMYK is the one such mode that both Pillow maps and the resizer takes as it is.
"""

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_per_thread = threading.local()


def _resizer() -> tuple[Any, Any]:
    """Resizer of the calling thread (it owns scratch memory) and its options."""
    try:
        return _per_thread.resizer, _per_thread.options
    except AttributeError:
        triangle = cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.bilinear)
        _per_thread.options = cykooz_resizer.ResizeOptions(resize_alg=triangle, use_alpha=False)
        _per_thread.resizer = cykooz_resizer.Resizer()
    return _per_thread.resizer, _per_thread.options


def resize(image: Image.Image, size: tuple[int, int], interpolation: str) -> Image.Image:
    """Resize with the antialiased triangle (``"bilinear"``) or ``"bicubic"`` filter.

    Args:
        image: RGB, or RGB and an ignored byte (:data:`OPAQUE_MODE`).
        size: width and height in pixels.
        interpolation: name of the filter.

    Returns:
        An image of the same mode; the same image when it has that size already.
    """
    if size == image.size:
        return image
    fast = interpolation == "bilinear" and image.mode in ("RGB", OPAQUE_MODE)
    if cykooz_resizer is None or not fast:
        return image.resize(size, _FILTERS[interpolation])
    resizer, options = _resizer()
    for step in ((size[0], image.height), size):
        if step != image.size:
            target = Image.new(image.mode, step)
            resizer.resize_pil(image, target, options)
            image = target
    return image
