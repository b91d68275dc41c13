"""The distillation recipe from photos to a checkpoint; ``nima distill`` runs it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from nima_client._files import sha256_file
from nima_client.preprocess import PreprocessSpec, preprocess
from nima_training import distribution
from nima_training.checkpoint import (
    META_FILE,
    load_checkpoint,
    reference_quantiles,
    save_checkpoint,
)
from nima_training.distill.agreement import HeldOut
from nima_training.distill.config import DistillConfig, StageConfig
from nima_training.distill.head import fit_head
from nima_training.distill.photos import split_photos
from nima_training.distill.pool import Pool, build_pool
from nima_training.distill.stages import Stage, train_stage
from nima_training.distill.teacher import TFLiteTeacher
from nima_training.files import write_json
from nima_training.folded import calibrate_batch_norm, load_folded, with_folded_norms
from nima_training.inference import network_input, predict
from nima_training.losses import DistillationLoss
from nima_training.models import create_model, head_module
from nima_training.tflite import read_tflite

SPEC = PreprocessSpec()
CALIBRATION_PHOTOS = 256


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


def blocks(model: nn.Module) -> nn.Sequential:
    """The blocks of a torchvision MobileNet."""
    features = model.get_submodule("features")
    assert isinstance(features, nn.Sequential)
    return features


class Tail(nn.Module):
    """The trainable rest of a torchvision MobileNet behind its first ``start`` blocks."""

    def __init__(self, model: nn.Module, start: int) -> None:
        super().__init__()
        self.features = blocks(model)[start:]
        self.classifier = model.get_submodule("classifier")

    def forward(self, x: Tensor) -> Tensor:
        """Logits from the output of the first blocks."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


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

    def measured(part: nn.Module, state: dict[str, Tensor], downscale: int) -> tuple[float, str]:
        """Selection error with ``state`` swapped into ``part`` of the model for the moment."""
        current = {name: value.clone() for name, value in part.state_dict().items()}
        part.load_state_dict(state)
        result = selection.measure(model, downscale)["all"]
        part.load_state_dict(current)
        return result["mae_mean"], (
            f"selection spearman {result['spearman_mean']:.4f}, MAE {result['mae_mean']:.4f}, "
            f"EMD r=2 {result['emd_r2']:.4f}"
        )

    def run(name: str, stage: StageConfig) -> None:
        """Train the blocks after the frozen ones, which are computed without gradients."""
        frozen = stage.frozen_blocks
        start = with_folded_norms(blocks(model)[:frozen])
        tail = Tail(model, frozen)
        device = next(model.parameters()).device

        def fetch(rows: np.ndarray) -> Tensor:
            with torch.no_grad():
                x = network_input(pool.pixels[rows], SPEC).to(device)
                if stage.downscale > 1:
                    x = nn.functional.avg_pool2d(x, stage.downscale)
                return start(x)  # type: ignore[no-any-return]

        best = train_stage(
            Stage(
                name, tail, with_folded_norms(tail), head_module(model, config.backbone), fetch,
                labels, lambda state: measured(tail, state, stage.downscale), stage,
            ),
            config.work_dir / f"stage-{name}.pt", loss, config.weight_decay, config.ema_decay,
            config.seed, console,
        )  # fmt: skip
        tail.load_state_dict(best)

    fitted = config.work_dir / "checkpoint-head"
    if (fitted / META_FILE).exists():
        model.load_state_dict(load_checkpoint(fitted).model.state_dict())
    elif config.init is not None:
        _fit_head(config, model, pool, selection, console)
        write_checkpoint(config, model, photos, teacher, fitted)
    if config.small_stage.epochs > 0:
        run("small", config.small_stage)
    if config.full_stage.epochs > 0:
        run("full", config.full_stage)
    return write_checkpoint(config, model, photos, teacher, config.out)


def _fit_head(
    config: DistillConfig, model: nn.Module, pool: Pool, selection: HeldOut, console: Console
) -> None:
    """Fit the head on the backbone's features of the first views."""
    fast = with_folded_norms(blocks(model)).eval()

    @torch.inference_mode()
    def features(pixels: np.ndarray) -> Tensor:
        device = next(model.parameters()).device
        parts = [
            fast(network_input(pixels[i : i + 32], SPEC).to(device)).mean((2, 3)).cpu()
            for i in range(0, len(pixels), 32)
        ]
        return torch.cat(parts)

    count = min(config.head_views, len(pool))
    labels = torch.from_numpy(np.array(pool.labels[:count]))
    with torch.inference_mode(False):
        layer, penalty, error = fit_head(
            features(pool.pixels[:count]).clone(), labels,
            features(selection.pixels).clone(), selection.labels,
        )  # fmt: skip
    linear = head_module(model, config.backbone).get_submodule("1")
    linear.load_state_dict(layer.state_dict())
    console.print(f"head: fitted on {count} views, L2 {penalty:g}, selection MAE {error:.4f}")


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
    means = distribution.mean(predict(with_folded_norms(model), pixels, SPEC)).numpy()
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
            "training": {
                "command": "distill",
                **training,
                "teacher_sha256": sha256_file(config.teacher),
            },
            "data_sha256": data.hexdigest(),
            "metrics": {"to": f"teacher {config.teacher.name}", "held_out": metrics},
        },
    )
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return metrics
