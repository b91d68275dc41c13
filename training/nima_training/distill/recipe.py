"""The distillation recipe from photos to a checkpoint; ``nima distill`` runs it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from nima_client.preprocess import PreprocessSpec, preprocess
from nima_training import distribution
from nima_training.checkpoint import (
    reference_quantiles,
    save_checkpoint,
    sha256_file,
    write_json,
)
from nima_training.distill.agreement import HeldOut, agreement_line
from nima_training.distill.config import DistillConfig, StageConfig
from nima_training.distill.fit import fit_fresh
from nima_training.distill.photos import split_photos
from nima_training.distill.stages import Stage, train_stage
from nima_training.distill.stream import Views, at_size, batches
from nima_training.distill.student import build_student
from nima_training.distill.teacher import FloatTeacher, TFLiteTeacher
from nima_training.folded import with_folded_norms
from nima_training.inference import network_input, predict
from nima_training.losses import DistillationLoss

SPEC = PreprocessSpec()


def distill(config: DistillConfig, console: Console) -> dict[str, Any]:
    """Run the whole recipe (or what is left of it) and write the checkpoint to ``config.out``.

    Returns:
        The held-out metrics that the checkpoint carries.
    """
    torch.set_num_threads(config.threads)
    photos = split_photos(config.photos, config.seed)
    console.print("photos: " + ", ".join(f"{len(v)} {k}" for k, v in photos.items()))
    _check_plan(config, photos)
    judge = TFLiteTeacher(config.teacher, threads=config.threads)
    teacher = FloatTeacher(config.teacher)
    selection = HeldOut(photos["selection"], judge, SPEC, config.seed)
    count = config.calibration_views
    calibration = next(_views(config, photos["train"], SPEC.crop_size, range(count), count))
    student = build_student(
        config.backbone, config.init, config.dropout, config.seed, calibration, teacher.channels,
        SPEC,
    )  # fmt: skip
    device = next(student.parameters()).device
    teacher.to(device)
    distribution_loss = DistillationLoss(config.mean_weight)

    def measured(state: dict[str, Tensor]) -> tuple[float, str]:
        """Selection error with ``state`` swapped into the student for the moment."""
        current = {name: value.clone() for name, value in student.state_dict().items()}
        student.load_state_dict(state)
        values = selection.measure(student.model)["all"]
        student.load_state_dict(current)
        return values["mae_mean"], agreement_line("selection", values)

    def run(name: str, stage: StageConfig, first: int) -> None:
        """Train on the views from number ``first`` on."""

        def stage_batches(step: int) -> Iterator[Tensor]:
            start = first + step * stage.batch_size
            numbers = range(start, first + stage.views)
            return _views(config, photos["train"], stage.size, numbers, stage.batch_size)

        def loss(pixels: Tensor) -> Tensor:
            x = network_input(pixels.numpy(), SPEC).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16_is_fast(device)):
                labels, target_maps = teacher(x)
                logits, maps = student(x, stage.frozen_blocks)
                hints = student.hints(maps, target_maps)
            return distribution_loss(logits, labels) + stage.hint_weight * hints

        # At another size than the held-out views' a smaller error there means little.
        best = train_stage(
            Stage(
                name, student, student.fresh_parameters(), stage_batches, loss, measured, stage,
                keep_best=stage.size == SPEC.crop_size,
            ),
            config.work_dir / f"stage-{name}.pt", config.weight_decay, config.ema_decay,
            config.seed, console,
        )  # fmt: skip
        student.load_state_dict(best)

    if not (config.work_dir / "stage-small.pt").exists():
        pixels = _views(
            config, photos["train"], config.small_stage.size, range(config.fit_views), 32
        )
        inputs = (network_input(batch.numpy(), SPEC).to(device) for batch in pixels)
        error = fit_fresh(student, teacher, inputs)
        console.print(f"head and adapters fitted on {config.fit_views} views, MAE {error:.4f}")
    if config.small_stage.views > 0:
        run("small", config.small_stage, 0)
    if config.full_stage.views > 0:
        run("full", config.full_stage, config.small_stage.views)
    return write_checkpoint(config, student.model, photos, judge, config.out)


def bf16_is_fast(device: torch.device) -> bool:
    """Whether ``device`` multiplies bfloat16 in hardware (Ampere and later, AVX512-BF16, AMX)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()


def _views(
    config: DistillConfig, photos: list[Path], size: int, numbers: range, batch_size: int
) -> Iterator[Tensor]:
    views = Views(photos, at_size(SPEC, size), config.view, config.seed)
    return batches(views, numbers, batch_size, config.workers)


def _check_plan(config: DistillConfig, photos: dict[str, list[Path]]) -> None:
    """Keep a work folder to one run: what it resumes must have been started the same way."""
    plan = _described(config) | {part: [p.name for p in paths] for part, paths in photos.items()}
    file = config.work_dir / "plan.json"
    if not file.exists():
        write_json(file, plan)
    elif json.loads(file.read_text()) != plan:
        raise ValueError(
            f"{config.work_dir} holds a run with other settings: choose another --work-dir"
        )


def _described(config: DistillConfig) -> dict[str, Any]:
    """The configuration as JSON, without what does not bear on the result."""
    values = json.loads(json.dumps(asdict(config), default=lambda path: path.name))
    for name in ("work_dir", "out", "workers", "threads"):
        values.pop(name)
    return dict(values)


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
                **_described(config),
                "teacher_sha256": sha256_file(config.teacher),
            },
            "data_sha256": data.hexdigest(),
            "metrics": {"to": f"teacher {config.teacher.name}", "held_out": metrics},
        },
    )
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return metrics
