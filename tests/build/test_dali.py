"""The DALI pipeline of the profile ``dali``, on the CPU, against nima_client.preprocess.

Thresholds, in 1/255 on each colour: mean difference at most 0.5; inside a margin of 2 pixels at
most 3 (8 for bicubic); on the margin itself at most 40, since Pillow narrows its filter at the
border where DALI repeats the last pixel.
"""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from nima_client.preprocess import PreprocessSpec, preprocess

dali = pytest.importorskip(
    "nvidia.dali", reason="needs nvidia-dali-cuda120 (extra gpu-preprocessing)"
)
SOURCE = Path(__file__).parents[2] / "model_repository" / "nima_preprocess" / "1" / "dali.py"
MEAN, MARGIN = 0.5, 40
INSIDE = {"bilinear": 3, "bicubic": 8}


def load(folder: Path, spec: PreprocessSpec) -> ModuleType:
    """The model file as Triton's DALI backend loads it: copied beside its specification."""
    shutil.copyfile(SOURCE, folder / "dali.py")
    (folder / "preprocessing.json").write_text(json.dumps(spec.to_dict()))
    found = importlib.util.spec_from_file_location("autoserialize_mod", folder / "dali.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def compare(module: ModuleType, files: list[bytes], spec: PreprocessSpec) -> None:
    pipeline = module.pipeline(
        device="cpu", device_id=None, batch_size=len(files), prefetch_queue_depth=1
    )
    pipeline.build()
    pipeline.feed_input("IMAGE", [np.frombuffer(data, np.uint8) for data in files])
    (batch,) = pipeline.run()
    for index, data in enumerate(files):
        got = np.asarray(batch[index]).astype(int)
        want = preprocess(data, spec).astype(int)
        assert got.shape == want.shape
        difference = np.abs(got - want)
        assert difference.mean() <= MEAN, index
        assert difference[2:-2, 2:-2].max() <= INSIDE[spec.interpolation], index
        assert difference.max() <= MARGIN, index


def jpegs() -> list[bytes]:
    from skimage import data

    files = []
    for pixels in (data.astronaut(), data.coffee(), data.chelsea(), data.camera()):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


@pytest.mark.parametrize(
    "spec",
    [
        PreprocessSpec(jpeg_oversampling=0),
        PreprocessSpec(
            resize="shortest", resize_size=256, interpolation="bicubic", jpeg_oversampling=0
        ),
    ],
    ids=["stretch-bilinear", "shortest-bicubic"],
)
def test_pixels_are_those_of_the_reference(tmp_path: Path, spec: PreprocessSpec) -> None:
    compare(load(tmp_path, spec), jpegs(), spec)


def test_bench_photos(tmp_path: Path, shared_photos: Path) -> None:
    spec = PreprocessSpec(jpeg_oversampling=0)
    paths = sorted((shared_photos / "bench").glob("*.jpg"))[:12]
    compare(load(tmp_path, spec), [path.read_bytes() for path in paths], spec)


def test_backend_can_serialise_it(tmp_path: Path) -> None:
    """The backend's own entry point finds exactly one pipeline; its result runs after a reload.

    Serialising the GPU pipeline itself takes a GPU, so its device is changed to the CPU here.
    """
    from nvidia.dali._utils.autoserialize import _discover_autoserialize

    spec = PreprocessSpec(jpeg_oversampling=0)
    module = load(tmp_path, spec)
    (found,) = _discover_autoserialize(module, visited=[])
    assert found is module.pipeline
    found(device="cpu", device_id=None).serialize(filename=str(tmp_path / "model.dali"))
    pipeline = dali.Pipeline.deserialize(
        filename=str(tmp_path / "model.dali"),
        batch_size=4,
        num_threads=1,
        device_id=None,
        prefetch_queue_depth=1,
    )
    pipeline.feed_input("IMAGE", [np.frombuffer(data, np.uint8) for data in jpegs()])
    (batch,) = pipeline.run()
    assert np.asarray(batch[0]).shape == (224, 224, 3)
    assert np.asarray(batch[0]).dtype == np.uint8
