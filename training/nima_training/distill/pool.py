"""Views with their teacher labels, made once, kept in memory maps and resumed after a kill.

The teacher and the view maker cost more than a training step on a small machine, so each view
is labelled once and seen in several epochs. Work goes in shards; a shard counts when its marker
file exists, which is written after its rows.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from rich.progress import track

from nima_client.preprocess import PreprocessSpec
from nima_training.distill.config import ViewConfig
from nima_training.distill.teacher import TFLiteTeacher
from nima_training.distill.views import training_view
from nima_training.files import write_json

SHARD = 256

_teacher: TFLiteTeacher | None = None


class Pool:
    """``pixels`` uint8 ``[N, S, S, 3]`` and ``labels`` FP32 ``[N, 10]``, memory mapped."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pixels: np.ndarray = np.load(directory / "pixels.npy", mmap_mode="r")
        self.labels: np.ndarray = np.load(directory / "labels.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self.labels)


def build_pool(
    directory: Path,
    photos: list[Path],
    teacher: Path,
    count: int,
    spec: PreprocessSpec,
    view: ViewConfig,
    seed: int,
    workers: int,
) -> Pool:
    """Make (or finish, or just open) the pool in ``directory``."""
    plan = {
        "photos": hashlib.sha256("\n".join(p.name for p in photos).encode()).hexdigest(),
        "teacher": teacher.name,
        "count": count,
        "spec": spec.to_dict(),
        "view": asdict(view),
        "seed": seed,
    }
    plan = json.loads(json.dumps(plan))
    plan_file = directory / "plan.json"
    if not plan_file.exists():
        directory.mkdir(parents=True, exist_ok=True)
        size = spec.crop_size
        for name, shape, dtype in (
            ("pixels", (count, size, size, 3), np.uint8),
            ("labels", (count, 10), np.float32),
        ):
            np.lib.format.open_memmap(directory / f"{name}.npy", "w+", dtype, shape).flush()
        write_json(plan_file, plan)
    elif json.loads(plan_file.read_text()) != plan:
        raise ValueError(
            f"{directory} holds a pool made with other settings: choose another --work-dir"
        )
    todo = [s for s in range(-(-count // SHARD)) if not _marker(directory, s).exists()]
    if todo:
        jobs = [(directory, photos, teacher, shard, count, spec, view, seed) for shard in todo]
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
            futures = [executor.submit(_make_shard, *job) for job in jobs]
            for future in track(as_completed(futures), "views", total=len(futures)):
                future.result()
    return Pool(directory)


def _marker(directory: Path, shard: int) -> Path:
    return directory / f"shard_{shard:05d}.done"


def _make_shard(
    directory: Path,
    photos: list[Path],
    teacher: Path,
    shard: int,
    count: int,
    spec: PreprocessSpec,
    view: ViewConfig,
    seed: int,
) -> None:
    global _teacher
    if _teacher is None:
        _teacher = TFLiteTeacher(teacher)
    numbers = range(shard * SHARD, min(count, (shard + 1) * SHARD))
    pixels = np.stack([training_view(photos, n, spec, view, seed) for n in numbers])
    rows = slice(numbers.start, numbers.stop)
    for name, value in (("pixels", pixels), ("labels", _teacher(pixels))):
        target = np.load(directory / f"{name}.npy", mmap_mode="r+")
        target[rows] = value
        target.flush()
    _marker(directory, shard).touch()
