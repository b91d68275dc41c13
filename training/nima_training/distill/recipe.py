"""The distillation recipe from photos to a checkpoint; ``nima distill`` runs it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nima_client.preprocess import PreprocessSpec, preprocess
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from nima_training import distribution
from nima_training.checkpoint import reference_quantiles, save_checkpoint, sha256_file, write_json
from nima_training.distill.agreement import HeldOut
from nima_training.distill.config import DistillConfig
from nima_training.distill.photos import split_photos
from nima_training.distill.pool import Pool, build_pool
from nima_training.distill.stages import Stage, train_stage
from nima_training.distill.teacher import TFLiteTeacher
from nima_training.folded import calibrate_batch_norm, load_folded
from nima_training.inference import network_input, predict
from nima_training.losses import DistillationLoss
from nima_training.models import create_model, head_module
from nima_training.tflite import read_tflite

SPEC = PreprocessSpec()
CALIBRATION_PHOTOS = 256
FEATURE_CHUNK = 64


def build_student(config: DistillConfig, pool: Pool) -> nn.Module:
    """The student before training: random, or an ImageNet backbone with calibrated batch norms."""
    torch.manual_seed(config.seed)
    model = create_model(config.backbone, weights="none", dropout=config.dropout)
    if config.init is not None:
        load_folded(model, read_tflite(config.init).layers)
        pixels = pool.pixels[:CALIBRATION_PHOTOS]
        calibrate_batch_norm(model, network_input(pixels, SPEC).split(32))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device)


def cached_features(stem: nn.Module, pool: Pool, file: Path) -> np.ndarray:
    """Outputs of the frozen ``stem`` for the whole pool: FP16 memory map ``[N, C, H, W]``."""
    device = next(stem.parameters()).device
    with torch.inference_mode():
        shape = stem(network_input(pool.pixels[:1], SPEC).to(device)).shape[1:]
    done_file = file.with_suffix(".done")
    done = int(done_file.read_text()) if done_file.exists() and file.exists() else 0
    mode = "r+" if done else "w+"
    # Stored channels last, as the network computes.
    rows = (len(pool), shape[1], shape[2], shape[0])
    store = np.lib.format.open_memmap(file, mode, np.float16, rows)
    stem.eval()
    for start in track(range(done, len(pool), FEATURE_CHUNK), "features"):
        stop = min(len(pool), start + FEATURE_CHUNK)
        with torch.inference_mode():
            output = stem(network_input(pool.pixels[start:stop], SPEC).to(device))
        store[start:stop] = output.permute(0, 2, 3, 1).half().cpu().numpy()
        if stop % (FEATURE_CHUNK * 32) == 0 or stop == len(pool):
            store.flush()
            done_file.write_text(str(stop))
    return store


class _Tail(nn.Module):
    """The trainable rest of a torchvision MobileNet behind a frozen stem."""

    def __init__(self, model: nn.Module, start: int) -> None:
        super().__init__()
        self.features = model.features[start:]  # type: ignore[index]
        self.classifier = model.classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]


def distill(config: DistillConfig, console: Console) -> dict[str, Any]:
    """Run the whole recipe (or what is left of it) and write the checkpoint to ``config.out``.

    Returns:
        The held-out metrics that the checkpoint carries.
    """
    torch.set_num_threads(config.threads)
    photos = split_photos(config.photos, config.seed)
    console.print("photos: " + ", ".join(f"{len(v)} {k}" for k, v in photos.items()))
    write_json(
        config.work_dir / "split.json", {part: [p.name for p in v] for part, v in photos.items()}
    )
    pool = build_pool(
        config.work_dir / "pool-train", photos["train"], config.teacher, config.views, SPEC,
        config.view, config.seed, config.workers,
    )  # fmt: skip
    teacher = TFLiteTeacher(config.teacher, threads=config.threads)
    selection = HeldOut(photos["selection"], teacher, SPEC, config.seed)
    model = build_student(config, pool)
    labels = np.array(pool.labels)
    loss = DistillationLoss(config.mean_weight)

    def measured(part: nn.Module, state: dict[str, Tensor]) -> tuple[float, str]:
        """Selection error with ``state`` swapped into ``part`` of the model for the moment."""
        current = {name: value.clone() for name, value in part.state_dict().items()}
        part.load_state_dict(state)
        result = selection.measure(model)["all"]
        part.load_state_dict(current)
        return result["mae_mean"], (
            f"selection spearman {result['spearman_mean']:.4f}, MAE {result['mae_mean']:.4f}, "
            f"EMD r=2 {result['emd_r2']:.4f}"
        )

    def run(stage: Stage) -> None:
        best = train_stage(
            stage, config.work_dir / f"stage-{stage.name}.pt", loss, config.weight_decay,
            config.ema_decay, config.seed, console,
        )  # fmt: skip
        stage.part.load_state_dict(best)

    head = head_module(model, config.backbone)
    if config.head_stage.epochs > 0:
        stem = model.features[: config.frozen_blocks]  # type: ignore[index]
        tail = _Tail(model, config.frozen_blocks)
        features = cached_features(stem, pool, config.work_dir / "features.npy")

        def fetch_features(rows: np.ndarray) -> Tensor:
            return torch.from_numpy(features[rows]).float().permute(0, 3, 1, 2)

        run(
            Stage(
                "head", tail, head, fetch_features, labels,
                lambda state: measured(tail, state), config.head_stage,
            )
        )  # fmt: skip
        if config.full_stage.epochs > 0:
            write_checkpoint(config, model, photos, teacher, config.work_dir / "checkpoint-head")

    if config.full_stage.epochs > 0:

        start = model.features[: config.full_frozen_blocks].requires_grad_(False)  # type: ignore[index]
        rest = _Tail(model, config.full_frozen_blocks)
        device = next(model.parameters()).device

        def fetch_pixels(rows: np.ndarray) -> Tensor:
            with torch.no_grad():
                return start.eval()(network_input(pool.pixels[rows], SPEC).to(device))  # type: ignore[no-any-return]

        run(
            Stage(
                "full", rest, head, fetch_pixels, labels,
                lambda state: measured(rest, state), config.full_stage,
            )
        )  # fmt: skip
    return write_checkpoint(config, model, photos, teacher, config.out)


def write_checkpoint(
    config: DistillConfig,
    model: nn.Module,
    photos: dict[str, list[Path]],
    teacher: TFLiteTeacher,
    out: Path,
) -> dict[str, Any]:
    """Measure on the held-out photos and write the checkpoint with its reference quantiles."""
    metrics: dict[str, Any] = HeldOut(photos["test"], teacher, SPEC, config.seed).measure(model)
    everything = sorted(path for part in photos.values() for path in part)
    pixels = np.stack([preprocess(path.read_bytes(), SPEC) for path in everything])
    means = distribution.mean(predict(model, pixels, SPEC)).numpy()
    data = hashlib.sha256("".join(sha256_file(path) for path in everything).encode())
    training = json.loads(json.dumps(asdict(config), default=lambda path: path.name))
    training.pop("work_dir")
    save_checkpoint(
        out,
        model.to(memory_format=torch.contiguous_format),  # type: ignore[call-overload]
        {
            "name": config.name,
            "backbone": config.backbone,
            "dropout": config.dropout,
            "preprocessing": SPEC.to_dict(),
            "reference": {
                "set": f"{len(everything)} photographs of {config.photos.name}, whole, undistorted",
                "quantiles": reference_quantiles(means),
            },
            "training": {"command": "distill", **training, "teacher_sha256": sha256_file(config.teacher)},
            "data_sha256": data.hexdigest(),
            "metrics": {"to": f"teacher {config.teacher.name}", "held_out": metrics},
        },
    )
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return metrics
