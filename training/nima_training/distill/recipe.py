"""The distillation recipe from a teacher and photos to a checkpoint; ``nima distill`` runs it.

The student is its teacher with channels removed (:mod:`nima_training.distill.prune`), trained to
give the same maps and ratings (:mod:`nima_training.distill.matching`), as DistilBERT (Sanh et al.,
2019) starts from layers of its teacher: with few photos a start at random, or at another ImageNet
network, ends much farther from the teacher.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from nima_client._files import check_output_folder, sha256_file
from nima_client.preprocess import PreprocessSpec
from nima_training import distribution
from nima_training.checkpoint import reference_quantiles, save_checkpoint
from nima_training.distill.agreement import HeldOut, agreement_line, measure_once
from nima_training.distill.config import DistillConfig, StageConfig
from nima_training.distill.half import round_to_half
from nima_training.distill.matching import Matching, varied
from nima_training.distill.photos import split_photos
from nima_training.distill.plan import run_plan, same_plan
from nima_training.distill.pool import build_pool
from nima_training.distill.prune import Pruned, prune
from nima_training.distill.stages import Stage, train_stage
from nima_training.distill.teacher import TFLiteTeacher
from nima_training.files import write_json
from nima_training.folded import with_folded_norms
from nima_training.imports import import_tflite
from nima_training.inference import network_input, predict_files
from nima_training.mobilenet_v1 import MobileNetV1, multiply_adds
from nima_training.state import load_state, save_state

SPEC = PreprocessSpec()
PLAN_FILE = "plan.json"
VARIANCE_VIEWS = 64
ROUNDING_VIEWS = 256


def distill(config: DistillConfig, console: Console) -> dict[str, Any]:
    """Run the whole recipe (or what is left of it) and write the checkpoint to ``config.out``.

    Returns:
        The held-out metrics that the checkpoint carries.

    Raises:
        ValueError: photos, teacher or budget that cannot be used, or a work directory of another
            run.
        OSError: ``config.out`` cannot be written into.
    """
    check_output_folder(config.out)
    torch.set_num_threads(config.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher = import_tflite(config.teacher).model
    assert isinstance(teacher, MobileNetV1)
    teacher.requires_grad_(False)
    photos = split_photos(config.photos, config.seed)
    console.print("photos: " + ", ".join(f"{len(v)} {k}" for k, v in photos.items()))
    plan = run_plan(config, photos)
    check_work_dir(config.work_dir, plan)
    write_json(
        config.work_dir / "split.json", {part: [p.name for p in v] for part, v in photos.items()}
    )
    pool = build_pool(
        config.work_dir / "pool-train", photos["train"], config.views, SPEC, config.view,
        config.seed, config.workers,
    )  # fmt: skip
    labeller = TFLiteTeacher(config.teacher, threads=config.threads)
    selection = HeldOut(photos["selection"], labeller, SPEC, config.seed)
    pruned = prune_or_load(config, plan, teacher, pool, console)
    student = _on(pruned.model, device)
    matching = Matching(
        _on(teacher, device), student, pruned.kept, config.mean_weight, config.hint_weight,
        network_input(pool[:VARIANCE_VIEWS], SPEC).to(device),
    )  # fmt: skip

    def measured(state: dict[str, Tensor]) -> tuple[float, str]:
        """Selection error with ``state`` swapped into the student for the moment."""
        current = {name: value.clone() for name, value in student.state_dict().items()}
        student.load_state_dict(state)
        result = selection.measure(student)["all"]
        student.load_state_dict(current)
        error = result["mae_mean"]
        return math.inf if error is None else error, agreement_line("selection", result)

    console.print("pruned: " + measured(student.state_dict())[1], soft_wrap=True)

    def run(name: str, stage: StageConfig) -> None:
        def loss(rows: np.ndarray, rng: np.random.Generator) -> Tensor:
            x = network_input(pool[rows], SPEC).to(device)
            return matching.loss(varied(x, stage.size, config.batch_mixed, rng), stage.frozen_parts)

        for number, part in enumerate(student.features):
            part.requires_grad_(number >= stage.frozen_parts)
        best = train_stage(
            Stage(name, student, loss, len(pool), measured, stage),
            config.work_dir / f"stage-{name}.pt", config.weight_decay, config.ema_decay,
            config.seed, console,
        )  # fmt: skip
        student.load_state_dict(best)

    if config.small_stage.epochs > 0:
        run("small", config.small_stage)
    if config.full_stage.epochs > 0:
        run("full", config.full_stage)
    student.cpu()
    round_to_half(student, network_input(pool[:ROUNDING_VIEWS], SPEC))
    console.print("rounded to FP16: " + measured(student.state_dict())[1], soft_wrap=True)
    return write_checkpoint(config, student, photos, labeller, config.out)


def _on(network: MobileNetV1, device: torch.device) -> MobileNetV1:
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def check_work_dir(work_dir: Path, plan: dict[str, Any]) -> None:
    """Refuse a student, whole or in the making, of another plan.

    Raises:
        ValueError: the directory holds one.
    """
    remedy = f"choose another --work-dir, or delete {PLAN_FILE} and *.pt in it"
    if not same_plan(work_dir / PLAN_FILE, plan, remedy) and any(work_dir.glob("*.pt")):
        raise ValueError(f"{work_dir} holds a student without a {PLAN_FILE}: {remedy}")


def prune_or_load(
    config: DistillConfig,
    plan: dict[str, Any],
    teacher: MobileNetV1,
    pool: np.ndarray,
    console: Console,
) -> Pruned:
    """The student before training, from the work directory if a run before got that far."""
    file = config.work_dir / "pruned.pt"
    saved = load_state(file)
    if saved is None:
        views = network_input(pool[: config.prune_views], SPEC)
        pruned = prune(teacher, views, config.budget)
        # Not before: a budget that pruning refuses leaves nothing to hold to.
        write_json(config.work_dir / PLAN_FILE, plan)
        save_state(file, {"kept": pruned.kept, "model": pruned.model.state_dict()})
    else:
        model = MobileNetV1(dropout=0.0, widths=[len(part) for part in saved["kept"]])
        model.load_state_dict(saved["model"])
        pruned = Pruned(model.eval(), saved["kept"])
    widths = pruned.model.widths
    console.print(
        f"student: widths {', '.join(map(str, widths))}; "
        f"{multiply_adds(widths) / 1e6:.0f} million multiply-adds, "
        f"its teacher {multiply_adds(teacher.widths) / 1e6:.0f}",
        soft_wrap=True,
    )
    return pruned


def write_checkpoint(
    config: DistillConfig,
    model: MobileNetV1,
    photos: dict[str, list[Path]],
    teacher: TFLiteTeacher,
    out: Path,
) -> dict[str, Any]:
    """Measure on the held-out photos and write the checkpoint with its reference quantiles.

    Raises:
        ValueError: a photo has become unreadable; names it.
    """
    metrics: dict[str, Any] = measure_once(model, photos["test"], teacher, SPEC, config.seed)
    everything = sorted(path for part in photos.values() for path in part)
    predicted, _, failures = predict_files(
        with_folded_norms(model), everything, SPEC, workers=config.threads
    )
    for index, reason in failures.items():
        raise ValueError(f"{everything[index]}: {reason}")
    means = distribution.mean(predicted).numpy()
    data = hashlib.sha256("".join(sha256_file(path) for path in everything).encode())
    training = json.loads(json.dumps(asdict(config), default=lambda path: path.name))
    training.pop("work_dir")
    save_checkpoint(
        out,
        model.to(memory_format=torch.contiguous_format),  # type: ignore[call-overload]
        {
            "name": config.name,
            "backbone": "mobilenet_v1",
            "widths": model.widths,
            "dropout": 0.0,
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
    return metrics
