"""Views of photos, made once, kept in a memory map and resumed after a kill.

Work goes in shards; a shard counts when its marker file exists, which is written after its rows.
"""

from __future__ import annotations

import errno
import os
from concurrent.futures import as_completed
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.progress import track

from nima_client.preprocess import PreprocessSpec
from nima_training.distill.config import ViewConfig
from nima_training.distill.plan import names_sha256, same_plan
from nima_training.distill.views import training_view
from nima_training.files import write_json
from nima_training.workers import worker_pool

SHARD = 256
PIXELS_FILE = "pixels.npy"


def build_pool(
    directory: Path,
    photos: list[Path],
    count: int,
    spec: PreprocessSpec,
    view: ViewConfig,
    seed: int,
    workers: int,
) -> np.ndarray:
    """Make (or finish, or just open) the pool in ``directory``: uint8 ``[count, S, S, 3]``, mapped.

    Raises:
        ValueError: the directory holds views made with other settings.
        OSError: the disk has too little room for them.
    """
    plan = {
        "photos": names_sha256(photos),
        "count": count,
        "spec": spec.to_dict(),
        "view": asdict(view),
        "seed": seed,
    }
    plan_file = directory / "plan.json"
    if not same_plan(plan_file, plan, "choose another --work-dir, or delete that folder"):
        directory.mkdir(parents=True, exist_ok=True)
        size = spec.crop_size
        shape = (count, size, size, 3)
        np.lib.format.open_memmap(directory / PIXELS_FILE, "w+", np.uint8, shape).flush()
        write_json(plan_file, plan)
    todo = [s for s in range(-(-count // SHARD)) if not _marker(directory, s).exists()]
    if todo:
        _reserve(directory / PIXELS_FILE)
        jobs = [(directory, photos, shard, count, spec, view, seed) for shard in todo]
        with worker_pool(workers) as executor:
            futures = [executor.submit(_make_shard, *job) for job in jobs]
            for future in track(as_completed(futures), "views", total=len(futures)):
                future.result()
    pixels: np.ndarray = np.load(directory / PIXELS_FILE, mmap_mode="r")
    return pixels


def _reserve(file: Path) -> None:
    """Take the room of a file on the disk: writing to a map of a full one kills the process."""
    with file.open("r+b") as mapped:
        try:
            os.posix_fallocate(mapped.fileno(), 0, file.stat().st_size)
        except AttributeError:  # macOS has none
            return
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                error.filename = str(file)
                raise
            # A file system that cannot: what is written takes its room then.


def _marker(directory: Path, shard: int) -> Path:
    return directory / f"shard_{shard:05d}.done"


def _make_shard(
    directory: Path,
    photos: list[Path],
    shard: int,
    count: int,
    spec: PreprocessSpec,
    view: ViewConfig,
    seed: int,
) -> None:
    numbers = range(shard * SHARD, min(count, (shard + 1) * SHARD))
    target = np.load(directory / PIXELS_FILE, mmap_mode="r+")
    for number in numbers:
        target[number] = training_view(photos, number, spec, view, seed)
    target.flush()
    _marker(directory, shard).touch()
