"""The manifest as a torch data set: augmented views, or the server's pixels.

Randomness belongs to the sample: view ``i`` of epoch ``e`` depends on (seed, e, i) only, not on
workers, ranks or where a run was resumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from nima_client._os_errors import in_words, reason
from nima_client.contract import RejectionCode
from nima_client.preprocess import (
    DEFAULT_LIMITS,
    ImageRejected,
    PreprocessSpec,
    decode,
    preprocess,
)
from nima_training.data.sources import PROBABILITIES, SUM_TOLERANCE, LabelError


@dataclass(frozen=True)
class Augmentation:
    """The paper's: resize to ``resize``, a random crop of the input size, a mirror image.

    As served, the photo is stretched to a square, or keeps its aspect ratio where the preprocessing
    resizes the short side, with the preprocessing's filter. Colour changes are left out on purpose:
    they change how people rate a photo.
    """

    resize: int | None = None
    """Side before the crop, in pixels; None is 8/7 of the input, the paper's 256 for 224, or the
    side that serving resizes to where that is larger."""
    mirror: bool = True

    def __post_init__(self) -> None:
        if self.resize is not None and (type(self.resize) is not int or self.resize < 1):
            raise ValueError(f"resize must be a whole number of pixels, not {self.resize!r}")
        if type(self.mirror) is not bool:
            raise ValueError(f"mirror must be true or false, not {self.mirror!r}")

    def side(self, spec: PreprocessSpec) -> int:
        """Side before the crop in pixels, never below the input of ``spec``."""
        if self.resize is not None:
            return max(spec.crop_size, self.resize)
        # A smaller one would show more of the photo, and coarser, than the network is served.
        return max(spec.resize_size, round(spec.crop_size * 8 / 7))


def read_manifest(path: Path) -> pd.DataFrame:
    """A manifest of ``nima prepare``, its ratings checked and scaled to a sum of 1.

    Raises:
        LabelError: no Parquet file, columns missing, or, with its row, a photo without a path or a
            rating that is NaN, negative or doesn't sum to 1.
    """
    if not path.is_file():
        raise LabelError(f"no manifest at {path}: make one with nima prepare")
    try:
        frame = pd.read_parquet(path).reset_index(drop=True)
    except (ValueError, OSError) as error:  # Arrow's errors are these
        why = reason(error).splitlines()[0]
        raise LabelError(
            f"{path} cannot be read as Parquet ({why}): make a manifest with nima prepare"
        ) from error
    needed = ["image_id", "path", "split", *PROBABILITIES]
    if missing := [name for name in needed if name not in frame]:
        raise LabelError(f"{path} lacks the columns {missing}: it is not a nima prepare manifest")
    named = [isinstance(name, str) for name in frame["path"]]
    if not all(named):
        raise LabelError(f"{path.name}, row {named.index(False)}: no path of a photo")
    values = frame[PROBABILITIES].to_numpy(np.float64)
    bad = (
        ~np.isfinite(values).all(1) | (values < 0).any(1) | (abs(values.sum(1) - 1) > SUM_TOLERANCE)
    )
    if bad.any():
        row = int(np.argmax(bad))
        raise LabelError(
            f"{path.name}, row {row} (image {frame['image_id'][row]}): ratings must be finite "
            f"probabilities that sum to 1, found {values[row].tolist()}"
        )
    frame[PROBABILITIES] = values / values.sum(1, keepdims=True)
    return frame


class Photos(Dataset[dict[str, Any]]):
    """Rows of a manifest as ``{"pixels": uint8 [3, S, S], "target": FP32 [10], "row": int}``.

    A file that cannot be read gives ``{"row": …, "error": …}``; :func:`collate` sets it aside.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        root: Path,
        spec: PreprocessSpec,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.paths = [root / path for path in frame["path"]]
        self.ids = frame["image_id"].astype(str).tolist()
        self.targets = torch.tensor(frame[PROBABILITIES].to_numpy(np.float32))
        self.spec, self.augmentation, self.seed = spec, augmentation, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> dict[str, Any]:
        try:
            pixels = self._train(row) if self.augmentation else self._evaluate(row)
        except (ImageRejected, OSError) as error:
            return {"row": row, "error": f"{self.paths[row].name}: {in_words(error)}"}
        return {"pixels": pixels, "target": self.targets[row], "row": row}

    def _evaluate(self, row: int) -> Tensor:
        pixels = preprocess(self.paths[row].read_bytes(), self.spec)
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1)

    def _train(self, row: int) -> Tensor:
        assert self.augmentation is not None
        size = self.spec.crop_size
        resize = self.augmentation.side(self.spec)
        resized = replace(self.spec, resize_size=resize)
        # As the server decodes; a JPEG at a reduced DCT scale that still covers the view twice.
        image = decode(self.paths[row].read_bytes(), resized)
        if not resized.fits(*image.size, DEFAULT_LIMITS):  # nor does the server take it
            raise ImageRejected(
                RejectionCode.TOO_LARGE,
                f"{image.width}x{image.height} pixels are too many once the short side is {resize}",
            )
        sides = [resize, resize] if self.spec.resize == "stretch" else [resize]  # the short one
        view: Image.Image = F.resize(
            image, sides, interpolation=v2.InterpolationMode(self.spec.interpolation)
        )
        # One generator a sample; torchvision draws from the global one, so lend it for the moment.
        entropy = np.random.SeedSequence((self.seed, self.epoch, row)).generate_state(1)[0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(entropy))
            view = v2.RandomCrop(size)(view)
            if self.augmentation.mirror:
                view = v2.RandomHorizontalFlip()(view)
        return F.pil_to_tensor(view)


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack the readable samples; ``errors`` lists the others as (row, reason)."""
    good = [sample for sample in samples if "error" not in sample]
    batch: dict[str, Any] = {
        "errors": [(sample["row"], sample["error"]) for sample in samples if "error" in sample],
        "rows": [sample["row"] for sample in good],
    }
    if good:
        batch["pixels"] = torch.stack([sample["pixels"] for sample in good])
        batch["targets"] = torch.stack([sample["target"] for sample in good])
    return batch


class EpochBatches:
    """Row numbers of each micro-batch of one rank, from any batch of the epoch on.

    The epoch's permutation is cut into global batches of ``batch * ranks`` rows, and rank ``r``
    takes the ``r``-th slice of each, so that N ranks see what one rank with N times the batch sees.
    The incomplete last batch is left out.
    """

    def __init__(
        self, count: int, batch: int, seed: int, epoch: int, rank: int, ranks: int, start: int = 0
    ) -> None:
        self.order = np.random.default_rng((seed, epoch)).permutation(count)
        self.batch, self.rank, self.ranks, self.start = batch, rank, ranks, start
        self.batches = count // (batch * ranks)

    def __len__(self) -> int:
        return self.batches - self.start

    def __iter__(self) -> Iterator[list[int]]:
        for index in range(self.start, self.batches):
            first = (index * self.ranks + self.rank) * self.batch
            yield self.order[first : first + self.batch].tolist()


def normalise_on_device(pixels: Tensor, spec: PreprocessSpec) -> Tensor:
    """uint8 ``[B, 3, S, S]`` on any device to normalised FP32, stored channels last.

    The arithmetic of :func:`nima_client.preprocess.normalize`, where the pixels already are.
    """
    mean = torch.tensor(spec.mean, device=pixels.device).view(1, 3, 1, 1)
    std = torch.tensor(spec.std, device=pixels.device).view(1, 3, 1, 1)
    scaled = (pixels.float() / 255 - mean) / std
    return scaled.contiguous(memory_format=torch.channels_last)
