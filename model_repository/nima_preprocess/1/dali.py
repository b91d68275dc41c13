"""DALI pipeline of the profile ``dali``: IMAGE (UINT8 [-1], one file a row) to PIXELS.

The DALI backend of a stock tritonserver image serialises it when it loads the model
(https://github.com/triton-inference-server/dali_backend, "Autoserialization"). Nothing of this
project is installed there, so the specification is read from the file `nima export` writes beside
this one.

For trusted input: one image DALI cannot decode fails its whole batch, the limits on bytes and
pixels are not checked, and alpha is dropped instead of composited. tests/build/test_dali.py states
how far its pixels are from nima_client.preprocess.
"""

import json
from pathlib import Path

from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.triton import autoserialize

MAX_BATCH_SIZE = 32
INTERPOLATION = {"bilinear": types.INTERP_TRIANGULAR, "bicubic": types.INTERP_CUBIC}


def pixels(encoded, spec, device):
    """Decode, turn upright, resize with an antialiased filter and crop.

    Args:
        encoded: DALI node of encoded files, uint8 ``[N]``.
        spec: fields of the preprocessing specification.
        device: ``mixed`` decodes JPEG on the GPU, ``cpu`` does all on the CPU.

    Returns:
        DALI node of uint8 ``[S, S, 3]``, RGB.
    """
    images = fn.decoders.image(
        encoded,
        device=device,
        output_type=types.RGB,
        # Off by default; without it chroma differs from libjpeg by up to 25/255.
        jpeg_fancy_upsampling=True,
    )
    size, crop = spec["resize_size"], spec["crop_size"]
    side = {"resize_x": size, "resize_y": size}
    if spec["resize"] == "shortest":
        side = {"resize_shorter": size}
    images = fn.resize(
        images, interp_type=INTERPOLATION[spec["interpolation"]], antialias=True, **side
    )
    if spec["resize"] == "shortest" or crop != size:
        # The reference rounds the corner down; DALI's default rounds it to the nearest pixel.
        images = fn.crop(images, crop_h=crop, crop_w=crop, rounding="truncate")
    return images


def read_spec():
    """The specification `nima export` left in this folder."""
    return json.loads(Path(__file__).with_name("preprocessing.json").read_text())


@autoserialize
@pipeline_def(
    batch_size=MAX_BATCH_SIZE,
    num_threads=4,
    device_id=0,
    output_dtype=[types.UINT8],
    output_ndim=[3],
)
def pipeline(device="mixed"):
    """What Triton runs; the tests ask for the CPU."""
    encoded = fn.external_source(device="cpu", name="IMAGE", dtype=types.UINT8, ndim=1)
    return pixels(encoded, read_spec(), device)
