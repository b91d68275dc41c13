"""The CPU-only half of the GPU preprocessing, compared with nima_client.preprocess.

nvImageCodec really decodes here, by its CPU decoders. CV-CUDA needs a GPU to import: Pillow stands
in for its resize, so what is shown is which files go which way, and what nvImageCodec makes of
them. The resize itself has not been run here.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nima_build.repository import load_module
from nima_client.contract import RejectionCode
from nima_client.preprocess import (
    ImageRejected,
    Limits,
    PreprocessSpec,
    preprocess,
    to_pixels,
)

pytest.importorskip("nvidia.nvimgcodec", reason="needs the extra gpu-preprocessing")
VERSION = Path(__file__).parents[2] / "model_repository" / "nima_preprocess" / "1"
FULL = PreprocessSpec(jpeg_oversampling=0)


@pytest.fixture(scope="module")
def gpu_pixels() -> ModuleType:
    return load_module(VERSION / "gpu_pixels.py")


@pytest.fixture(scope="module")
def gpu_resize() -> ModuleType:
    return load_module(VERSION / "gpu_resize.py")


class HostBatch:
    """In the place of a batch on the GPU; a slot is a view of it."""

    def __init__(self, count: int, side: int) -> None:
        self.exported = np.zeros((count, side, side, 3), np.uint8)

    def slot(self, index: int) -> np.ndarray:
        return self.exported[index]


class PillowOperations:
    """In the place of CV-CUDA."""

    stream_handle = 0

    def __init__(self, spec: PreprocessSpec) -> None:
        self.spec = spec
        self.resized = 0
        self.uploaded = 0

    def allocate(self, count: int) -> HostBatch:
        return HostBatch(count, self.spec.crop_size)

    def resize(self, images: list[Any], slots: list[np.ndarray]) -> None:
        for image, slot in zip(images, slots, strict=True):
            self.resized += 1
            slot[:] = to_pixels(Image.fromarray(np.asarray(image.cpu())), self.spec)

    def upload(self, pixels: np.ndarray, slot: np.ndarray) -> None:
        self.uploaded += 1
        slot[:] = pixels

    def download(self, batch: HostBatch) -> np.ndarray:
        return batch.exported

    def wait(self) -> None:
        """Nothing is asynchronous here."""


def encoded(image: Image.Image, name: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    from skimage import data

    return Image.fromarray(data.astronaut())


def test_jpeg_goes_to_nvimagecodec_and_equals_the_reference(
    gpu_pixels: ModuleType, photo: Image.Image
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [
        encoded(photo, "JPEG", quality=90),
        encoded(photo.resize((301, 97)), "JPEG", quality=60, subsampling=2, progressive=True),
        encoded(photo.convert("L"), "JPEG"),
        encoded(photo.resize((400, 200)), "JPEG", exif=exif),
    ]
    operations = PillowOperations(FULL)
    run = gpu_pixels.GpuPixels(FULL, Limits(), gpu_pixels.JpegDecoder(None), operations)
    (pixels,) = run([files])
    assert (operations.resized, operations.uploaded) == (4, 0)
    for data, got in zip(files, pixels, strict=True):
        want = preprocess(data, FULL).astype(int)
        assert np.abs(want - got).max() <= 1


def test_everything_else_takes_the_reference_path(
    gpu_pixels: ModuleType, photo: Image.Image
) -> None:
    transparent = photo.convert("RGBA")
    transparent.putalpha(90)
    deep = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    files = [
        encoded(photo, "PNG"),
        encoded(transparent, "PNG"),
        encoded(deep, "PNG"),
        encoded(photo, "WEBP"),
        encoded(photo.convert("CMYK"), "JPEG"),
        encoded(photo.convert("P"), "GIF"),
    ]
    operations = PillowOperations(FULL)
    run = gpu_pixels.GpuPixels(FULL, Limits(), gpu_pixels.JpegDecoder(None), operations)
    (pixels,) = run([files])
    assert (operations.resized, operations.uploaded) == (0, 6)
    for data, got in zip(files, pixels, strict=True):
        np.testing.assert_array_equal(got, preprocess(data, FULL))


@pytest.mark.parametrize("host_below", [0, 2, 9])
def test_bad_files_are_refused_one_by_one(
    gpu_pixels: ModuleType, photo: Image.Image, host_below: int
) -> None:
    """Whether the requests have a batch each, or the small ones share one."""
    good = encoded(photo, "JPEG")
    large = encoded(Image.new("RGB", (1200, 1000)), "PNG")
    requests = [[good, b"", good[:3000]], [good], [b"plain text", good, large], [good, good]]
    operations = PillowOperations(FULL)
    limits = Limits(max_pixels=1_000_000)
    run = gpu_pixels.GpuPixels(
        FULL, limits, gpu_pixels.JpegDecoder(None), operations, host_below=host_below
    )
    first, second, third, fourth = run(requests)
    assert [(index, error.code) for index, error in first] == [
        (1, RejectionCode.EMPTY),
        (2, RejectionCode.UNDECODABLE),
    ]
    assert [(index, error.code) for index, error in third] == [
        (0, RejectionCode.UNSUPPORTED),
        (2, RejectionCode.TOO_LARGE),
    ]
    assert (second.shape, fourth.shape) == ((1, 224, 224, 3), (2, 224, 224, 3))
    np.testing.assert_array_equal(second[0], preprocess(good, FULL))
    np.testing.assert_array_equal(second[0], fourth[1])


def test_a_line_that_would_become_gigabytes_is_refused(gpu_pixels: ModuleType) -> None:
    spec = PreprocessSpec(resize="shortest", jpeg_oversampling=0)
    operations = PillowOperations(spec)
    run = gpu_pixels.GpuPixels(spec, Limits(), gpu_pixels.JpegDecoder(None), operations)
    line, band = (encoded(Image.new("RGB", (1 + more, 3000)), "JPEG") for more in (0, 99))
    ((rejection,), pixels) = run([[line], [band]])
    assert rejection[1].code is RejectionCode.TOO_LARGE
    assert (operations.resized, pixels.shape) == (1, (1, 224, 224, 3))


def test_a_photo_without_its_end_is_left_to_the_reference(
    gpu_pixels: ModuleType, photo: Image.Image
) -> None:
    """A hardware decoder may fill in what is missing; the reference refuses it, or scores it."""
    whole = encoded(photo, "JPEG")
    operations = PillowOperations(FULL)
    run = gpu_pixels.GpuPixels(FULL, Limits(), gpu_pixels.JpegDecoder(None), operations)
    ((rejection,),) = run([[whole[:-2000]]])
    assert rejection[1].code is RejectionCode.UNDECODABLE
    (pixels,) = run([[whole + bytes(500)]])
    assert (operations.resized, operations.uploaded) == (0, 1)
    np.testing.assert_array_equal(pixels[0], preprocess(whole, FULL))


def test_what_the_gpu_cannot_do_is_scored_by_the_cpu(
    gpu_pixels: ModuleType, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round of decoding that fails as a whole (a full GPU) costs speed, and no request."""

    class Full(gpu_pixels.JpegDecoder):  # type: ignore[name-defined]
        rounds = 0

        def decode(self, files: list[bytes], stream: int = 0) -> list[Any]:
            self.rounds += 1
            if self.rounds == 2:
                raise RuntimeError("out of memory")
            return super().decode(files, stream)

    monkeypatch.setattr(gpu_pixels, "DECODED_BYTES", 3 * 200 * 200 * 2)
    files = [encoded(photo.resize((200, 200 - n)), "JPEG") for n in range(6)]
    operations, decoder = PillowOperations(FULL), Full(None)
    decoder.rounds = 0
    failures: list[Exception] = []
    run = gpu_pixels.GpuPixels(FULL, Limits(), decoder, operations, failures.append)
    (results,) = run([files])
    assert [str(error) for error in failures] == ["out of memory"]
    assert decoder.rounds == 3
    assert (operations.resized, operations.uploaded) == (4, 2)
    for data, got in zip(files, results, strict=True):
        assert np.abs(preprocess(data, FULL).astype(int) - got).max() <= 1


def test_rounds_keep_the_order_and_the_budget(gpu_pixels: ModuleType) -> None:
    sizes = {0: 40, 2: 60, 3: 10, 5: 500, 6: 90}
    assert list(gpu_pixels.rounds(sizes, 100)) == [[0, 2], [3], [5], [6]]
    assert list(gpu_pixels.rounds({}, 100)) == []


def test_images_of_like_size_are_resized_together(gpu_resize: ModuleType) -> None:
    shapes = [(10, 10), (100, 90), (9, 10), (10, 9), (90, 100), (500, 500)]
    assert list(gpu_resize.alike(shapes, 20_000)) == [[2, 3, 0], [1, 4], [5]]
    assert list(gpu_resize.alike([], 100)) == []


def test_bench_and_edge_photos_equal_the_reference(
    gpu_pixels: ModuleType, shared_photos: Path
) -> None:
    """Thresholds, in 1/255: full decode 0 for RGB and grey; after the resize at most 1."""
    operations = PillowOperations(FULL)
    pixels = gpu_pixels.GpuPixels(FULL, Limits(), gpu_pixels.JpegDecoder(None), operations)
    paths = sorted((shared_photos / "bench").glob("*.jpg"))[:12]
    paths += sorted((shared_photos / "edge").glob("*.jpg"))
    worst = 0
    for path in paths:
        data = path.read_bytes()
        (got,) = pixels([[data]])
        if isinstance(got, list):
            with pytest.raises(ImageRejected):
                preprocess(data, FULL)
            continue
        want = preprocess(data, FULL)
        worst = max(worst, int(np.abs(want.astype(int) - got[0]).max()))
    assert operations.resized > 20
    assert worst <= 1


@pytest.mark.parametrize("host_below", [0, 100])
@pytest.mark.parametrize(
    "spec",
    [FULL, PreprocessSpec(resize="shortest", resize_size=256, crop_size=224, jpeg_oversampling=0)],
    ids=["stretched", "cropped"],
)
def test_every_operation_that_is_asked_of_cv_cuda(
    photo: Image.Image, spec: PreprocessSpec, host_below: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real CvCuda on the stand-in: images resized together, cropped, uploaded, handed over."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "standins")
    sizes = [(640, 480), (300, 500), (512, 512), (97, 301)]
    requests = [
        [encoded(photo.resize(size), "JPEG", quality=90) for size in sizes],
        [encoded(photo.resize(sizes[1]), "PNG"), encoded(photo.convert("L"), "JPEG")],
    ]
    failures: list[Exception] = []
    module = load_module(VERSION / "gpu_pixels.py")
    try:
        run = module.on_gpu(spec, Limits(), None, failures.append, host_below)
        results = [
            found if isinstance(found, np.ndarray) else np.from_dlpack(found)
            for found in run(requests)
        ]
    finally:
        sys.modules.pop("cvcuda", None)
    assert failures == []
    for files, found in zip(requests, results, strict=True):
        want = np.stack([preprocess(data, spec) for data in files]).astype(int)
        assert np.abs(want - found).max() <= 1
