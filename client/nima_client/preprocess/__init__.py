"""The one preprocessing of the project: encoded bytes to the pixels a network sees.

Torch-free: numpy and Pillow. Where installed, simplejpeg decodes JPEG faster, to equal pixels, and
cykooz.resizer resizes faster, to pixels that differ from Pillow's in under 1 % of the values, by
1/255. The server's ``nima_preprocess`` model, training's evaluation, the parity gate and the tests
all run this code, so that a photo has one score everywhere.

    bytes --inspect_header--> ImageHeader    (limits are checked here, before any pixel is decoded)
    bytes --decode---------> PIL RGB image   (orientation applied, alpha on white, 16 bit scaled)
    image --to_pixels------> uint8 [S, S, 3]
    pixels --normalize-----> float32 [B, 3, S, S]

What is stated once, here:

- EXIF orientation is applied. ICC profiles are ignored, as they are in the pipelines that trained
  every published NIMA.
- Alpha is composited on white. 16 bits a channel are scaled to 8, not clipped.
- Of animated or multi-page files the first frame counts.
- JPEG is decoded at 1/2, 1/4 or 1/8 scale inside the DCT when the result still has at least
  ``PreprocessSpec.jpeg_oversampling`` times the pixels per side that the network needs.
"""

from nima_client.preprocess._decode import decode
from nima_client.preprocess._errors import ImageRejected
from nima_client.preprocess._header import (
    SUPPORTED_FORMATS,
    ImageHeader,
    inspect_header,
    sniff_format,
)
from nima_client.preprocess._libtiff import silence_libtiff
from nima_client.preprocess._spec import DEFAULT_LIMITS, Limits, PreprocessSpec
from nima_client.preprocess._transform import normalize, preprocess, to_pixels

__all__ = [
    "DEFAULT_LIMITS",
    "SUPPORTED_FORMATS",
    "ImageHeader",
    "ImageRejected",
    "Limits",
    "PreprocessSpec",
    "decode",
    "inspect_header",
    "normalize",
    "preprocess",
    "silence_libtiff",
    "sniff_format",
    "to_pixels",
]
