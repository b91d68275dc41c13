"""nvImageCodec alone on a GPU: images per second by backend, threads and batch.

    python benchmarks/gpu/decode.py PHOTOS --out out/gpu

The photos in AVA's size (see serve.py), the GPU waited for after each batch. ``begins with`` are
the batches that a decoder is given first: the hardware decoder takes no more files of any later
batch than of its first. ``pixels`` is the largest and the mean difference from Pillow, in 1/255.
Written after each figure, so that a run cut short leaves what it found.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nima_build.bench.arguments import told_by
from nima_build.bench.photos import load_photos
from nima_build.gpu import find_gpus
from nima_build.gpu_check.context import rate
from nima_client._files import write_atomic

SECONDS = 0.7
PREALLOCATE = "all, preallocated"
BACKENDS: dict[str, Sequence[str]] = {
    "all": (),
    PREALLOCATE: (),
    "hardware": ("HW_GPU_ONLY",),
    "CUDA and CPU": ("HYBRID_CPU_GPU",),
    "CPU": ("CPU_ONLY",),
}
CASES = (
    (1, 32, (32,)),
    (4, 32, (32,)),
    (4, 32, (1,)),
    (4, 32, (32, 1)),
    (8, 128, (128,)),
    (8, 128, (1,)),
    (8, 128, (128, 1, 32)),
    (15, 128, (128,)),
)
"""Threads, batch, and the batches that the decoder begins with."""


def preallocation(batch: int) -> str:
    """Options that have the hardware decoder's buffers made before the first batch comes."""
    hints = {"batch_size": batch, "width_hint": 512, "height_hint": 512}
    return "".join(f" nvjpeg_hw_decoder:preallocate_{name}={n}" for name, n in hints.items())


def open_decoder(
    backends: Sequence[str], threads: int, options: str = ""
) -> Callable[[list[bytes]], list[Any]]:
    """A decoder as the profile ``default`` has it, but for backends, threads and options."""
    from cuda.bindings import runtime
    from nvidia import nvimgcodec

    kinds = [nvimgcodec.Backend(getattr(nvimgcodec.BackendKind, name)) for name in backends]
    decoder = nvimgcodec.Decoder(
        device_id=0,
        max_num_cpu_threads=threads,
        backends=kinds or None,
        options=":fancy_upsampling=1" + options,
    )
    params = nvimgcodec.DecodeParams(
        apply_exif_orientation=True, color_spec=nvimgcodec.ColorSpec.SRGB
    )

    def decode(files: list[bytes]) -> list[Any]:
        images: list[Any] = decoder.decode(
            [nvimgcodec.CodeStream(data) for data in files], params=params
        )
        (status,) = runtime.cudaDeviceSynchronize()
        if int(status) != 0:
            raise RuntimeError(f"cudaDeviceSynchronize: {status!r}")
        return images

    return decode


def pixels(files: list[bytes], backends: Sequence[str]) -> dict[str, Any]:
    """Difference of decoded pixels from Pillow's, in 1/255, and how many files were not decoded.

    Raises:
        RuntimeError: none was.
    """
    largest, means = 0, []
    for data, image in zip(files, open_decoder(backends, 4)(files)):
        if image is not None:
            wanted = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
            difference = np.abs(np.asarray(image.cpu()) - wanted)
            largest = max(largest, int(difference.max()))
            means.append(float(difference.mean()))
    if not means:
        raise RuntimeError(f"none of {len(files)} files was decoded")
    mean = round(float(np.mean(means)), 5)
    return {"max": largest, "mean": mean, "undecoded": len(files) - len(means)}


def main() -> None:
    """Measure, write decode.json."""
    from serve import ava_sized

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, nargs="+", help="photos and folders of photos")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"))
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    options = parser.parse_args()
    gpus = find_gpus()
    if not gpus:
        parser.error("there is no NVIDIA GPU here (nvidia-smi finds none)")
    with told_by(parser):
        files = [ava_sized(photo).data for photo in load_photos(options.photos)]
    report: dict[str, Any] = {"gpu": asdict(gpus[0]), "rates": [], "pixels": {}}
    options.out.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        content = json.dumps(report, indent=2) + "\n"
        write_atomic(options.out / "decode.json", content.encode())

    for name in options.backends:
        backends = BACKENDS[name]
        for threads, batch, first in CASES:
            row: dict[str, Any] = {"backends": name, "threads": threads, "batch": batch}
            row["begins with"] = first
            report["rates"].append(row)
            chosen = [files[n % len(files)] for n in range(batch)]
            try:
                extra = preallocation(batch) if name == PREALLOCATE else ""
                decode = open_decoder(backends, threads, extra)
                for count in first:
                    decode(chosen[:count])
                row["undecoded"] = sum(image is None for image in decode(chosen))
                row["rate"] = rate(lambda: decode(chosen), batch, SECONDS)  # noqa: B023 - called here
            except RuntimeError as error:  # a backend that this GPU has not
                row["reason"] = str(error).splitlines()[0]
            print(row, flush=True)
            save()
        try:
            report["pixels"][name] = pixels(files, backends)
        except RuntimeError as error:
            report["pixels"][name] = {"reason": str(error).splitlines()[0]}
        print(name, report["pixels"][name], flush=True)
        save()


if __name__ == "__main__":
    main()
