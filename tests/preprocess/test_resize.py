"""The fast resize against Pillow's own, which it must not leave."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from PIL import Image

from nima_client.preprocess import PreprocessSpec, _resize, decode, preprocess, to_pixels

FRACTION_TOLERANCE = 0.01  # of a photo's values may differ from Pillow's, by 1/255

pytestmark = pytest.mark.skipif(_resize.cykooz_resizer is None, reason="no cykooz.resizer here")


def pillow_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_resize, "cykooz_resizer", None)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    "size",
    [(768, 512), (512, 768), (1000, 700), (1, 1), (224, 500), (500, 224), (224, 224), (90, 60)],
)
def test_pixels_are_pillows(monkeypatch, size, interpolation):
    spec = PreprocessSpec(interpolation=interpolation)
    noise = np.random.default_rng(7).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(noise)
    fast = to_pixels(image, spec).astype(np.int16)
    pillow_only(monkeypatch)
    gap = np.abs(fast - to_pixels(image, spec))
    assert gap.max() <= 1
    assert (gap > 0).mean() <= FRACTION_TOLERANCE


def test_a_strip_is_within_one_level(monkeypatch):
    strip = Image.fromarray(np.random.default_rng(7).integers(0, 256, (4000, 3, 3), np.uint8))
    fast = to_pixels(strip, PreprocessSpec()).astype(np.int16)
    pillow_only(monkeypatch)
    assert np.abs(fast - to_pixels(strip, PreprocessSpec())).max() <= 1


@pytest.mark.parametrize("size", [(640, 480), (4003, 2999)])
@pytest.mark.parametrize("resize", ["stretch", "shortest"])
def test_the_path_without_a_copy_gives_the_same_pixels(encode, size, resize):
    spec = PreprocessSpec(resize=resize, resize_size=256)
    data = encode("JPEG", size, quality=90)
    assert np.array_equal(preprocess(data, spec), to_pixels(decode(data, spec), spec))


def test_threads_do_not_share_scratch_memory(encode):
    spec = PreprocessSpec()
    photos = [encode("JPEG", (400 + 40 * k, 300), seed=k) for k in range(4)]
    wanted = [preprocess(data, spec) for data in photos]
    wrong: list[int] = []

    def work(offset: int) -> None:
        for k in range(24):
            which = (k + offset) % len(photos)
            if not np.array_equal(preprocess(photos[which], spec), wanted[which]):
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_bench_photos_are_pillows(shared_photos, monkeypatch):
    spec = PreprocessSpec()
    photos = [p.read_bytes() for p in sorted((shared_photos / "bench").iterdir())]
    fast = [preprocess(data, spec).astype(np.int16) for data in photos]
    pillow_only(monkeypatch)
    gaps = [np.abs(a - preprocess(data, spec)) for a, data in zip(fast, photos)]
    assert max(gap.max() for gap in gaps) <= 1
    assert max((gap > 0).mean() for gap in gaps) <= FRACTION_TOLERANCE


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (100, 7), (224, 224), (3, 5000)])
def test_shortest_makes_the_short_side_that_of_the_spec_and_keeps_the_shape(size):
    width, height = PreprocessSpec(resize="shortest", resize_size=256).resized_size(*size)
    assert min(width, height) == 256
    assert width / height == pytest.approx(size[0] / size[1], rel=0.01)
    assert PreprocessSpec().resized_size(*size) == (224, 224)
