"""The training loop, to be read in one sitting.

accelerate moves tensors, casts and averages gradients over processes; everything else is here. A
run is a sequence of updates; after any of them its whole state can be written, and a run that was
killed goes on from the last one written and ends with the weights it would have had.
"""

from __future__ import annotations

import json
import math
import time
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nima_training import metrics
from nima_training.config import TrainConfig
from nima_training.console import note_unreadable, progress_bar
from nima_training.data.dataset import (
    EpochBatches,
    Photos,
    collate,
    normalise_on_device,
    read_manifest,
)
from nima_training.data.manifest import data_sha256
from nima_training.data.sources import PROBABILITIES
from nima_training.distribution import probabilities
from nima_training.ema import EMA
from nima_training.losses import emd
from nima_training.models import WEIGHTS_NONE, create_model, head_module
from nima_training.processes import make_accelerator, union
from nima_training.run_dir import RunDirectory, TrainingError
from nima_training.schedule import Progressed, learning_rate_factor
from nima_training.validation import predict_split


class Trainer:
    """One run. ``Trainer(config, console).run()`` trains, resumes, and writes checkpoints."""

    def __init__(self, config: TrainConfig, console: Console) -> None:
        self.config, self.console = config, console
        if config.threads:
            torch.set_num_threads(config.threads)
        self.accelerator = make_accelerator(config)
        frame = read_manifest(config.manifest)
        self.files = RunDirectory(config, data_sha256(frame) if "sha256" in frame else None)
        self.train_set = Photos(
            frame[frame["split"] == "train"], config.photos, config.preprocessing,
            config.augmentation, config.seed,
        )  # fmt: skip
        self.val_frame = frame[frame["split"] == "val"]
        self.val_set = Photos(self.val_frame, config.photos, config.preprocessing)
        ranks = self.accelerator.num_processes
        self.per_epoch = len(self.train_set) // (config.batch_size * ranks)
        if self.per_epoch < config.accumulate or len(self.val_set) == 0:
            raise TrainingError(
                f"{len(self.train_set)} training and {len(self.val_set)} validation photos are too "
                f"few for batches of {config.batch_size} x {ranks} x {config.accumulate}"
            )
        self.updates_per_epoch = self.per_epoch // config.accumulate
        torch.manual_seed(config.seed)
        # A run that goes on has its own weights; those it began with may be gone.
        weights = WEIGHTS_NONE if self.files.begun() else config.weights
        self.model = create_model(config.backbone, weights, config.dropout)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.at = Progressed()
        self.skipped: dict[int, str] = {}
        """Rows of the training split whose file could not be read, and why."""
        self.skipped_val: dict[int, str] = {}
        self.network: Any = None
        """The model as accelerate and torch.compile wrap it."""
        self.frozen: bool | None = None
        """Whether only the head learns; None before the first phase."""
        self.ema = EMA(self.model, config.ema_decay) if config.ema_decay else None

    # ---- one run ---------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train to the end; returns the metrics of the best epoch on the validation split."""
        config = self.config
        saved = self._load()
        if self.at.done:
            self._say(f"{config.out} is finished; its best epoch was {self.at.best_epoch}")
        while not self.at.done:
            self._start_phase(saved)
            saved = None
            while not self.at.done:
                self._epoch()
                if self.at.epoch == config.frozen_epochs:
                    break  # the backbone thaws: parameters and optimiser are prepared anew
        self.accelerator.wait_for_everyone()  # the main process may still be writing it
        best: dict[str, Any] = json.loads((config.out / "best" / "checkpoint.json").read_text())
        return dict(best["metrics"])

    def _start_phase(self, saved: dict[str, Any] | None) -> None:
        """Prepare model and optimiser for the frozen stage or for the whole network."""
        config = self.config
        head = list(head_module(self.model, config.backbone).parameters())
        own = {id(p) for p in head}
        body = [p for p in self.model.parameters() if id(p) not in own]
        frozen = self.at.epoch < config.frozen_epochs
        for parameter in body:
            parameter.requires_grad_(not frozen)
        groups: list[dict[str, Any]] = [{"params": head, "base_lr": config.head_lr}]
        if not frozen:
            groups.append({"params": body, "base_lr": config.backbone_lr})
        optimiser = torch.optim.AdamW(groups, lr=config.head_lr, weight_decay=config.weight_decay)
        if self.frozen is not None:
            # Inside torch.compile's and DDP's wrappers is self.model itself: only the cast of its
            # forward is to be taken off.
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            self.accelerator.free_memory()
        self.network = self.accelerator.prepare_model(self.model)
        if self.ema is not None:
            device = self.accelerator.device
            self.ema.state = {name: value.to(device) for name, value in self.ema.state.items()}
        if config.compile:
            self.network = torch.compile(self.network)
        self.optimiser = self.accelerator.prepare_optimizer(optimiser)
        if saved is not None and saved["optimiser"] is not None:
            optimiser.load_state_dict(saved["optimiser"])
        if saved is not None and saved["scaler"] and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        self.raw_optimiser, self.frozen = optimiser, frozen

    # ---- one epoch -------------------------------------------------------------------------

    def _epoch(self) -> None:
        config, at = self.config, self.at
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        self.train_set.epoch = at.epoch
        batches = EpochBatches(
            len(self.train_set), config.batch_size, config.seed, at.epoch, rank, ranks, at.batch
        )
        loader = DataLoader(
            self.train_set, batch_sampler=batches, collate_fn=collate, num_workers=config.workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )  # fmt: skip
        usable = self.updates_per_epoch * config.accumulate
        seen, started, last_save = 0, time.monotonic(), time.monotonic()
        self._set_mode()
        with progress_bar(self.console, self.accelerator.is_main_process) as bar:
            task = bar.add_task("", total=usable, completed=at.batch)
            for batch in loader:
                if at.batch >= usable:
                    break
                at.loss_sum += self._micro_batch(batch)
                seen += 1
                at.batch += 1
                if at.batch % config.accumulate == 0:
                    self._update()
                    at.update += 1
                    if time.monotonic() - last_save >= config.save_seconds:
                        self._save()
                        last_save = time.monotonic()
                speed = seen * config.batch_size * ranks / (time.monotonic() - started)
                bar.update(task, advance=1, description=f"epoch {at.epoch} {speed:.1f} img/s")
        speed = seen * config.batch_size * ranks / max(1e-9, time.monotonic() - started)
        self._end_of_epoch(at.loss_sum / max(1, at.batch), speed)

    def _micro_batch(self, batch: dict[str, Any]) -> float:
        """Forward and backward of one micro-batch; the gradients stay in the parameters."""
        config = self.config
        note_unreadable(self.console, self.skipped, batch["errors"])
        if "pixels" not in batch:
            raise TrainingError(
                f"no photo of a whole batch is readable, e.g. {batch['errors'][0][1]}"
            )
        device = self.accelerator.device
        x = normalise_on_device(batch["pixels"].to(device, non_blocking=True), config.preprocessing)
        target = batch["targets"].to(device, non_blocking=True)
        # Dropout must not depend on where a run was resumed.
        torch.manual_seed(
            hash((config.seed, self.at.epoch, self.at.batch, self.accelerator.process_index))
        )
        last = (self.at.batch + 1) % config.accumulate == 0
        synchronise = nullcontext() if last else self.accelerator.no_sync(self.network)
        with synchronise:
            with self.accelerator.autocast():
                logits = self.network(x)
            losses = emd(probabilities(logits), target, config.emd_r)
            if not torch.isfinite(losses).all():
                finite = torch.isfinite(losses).tolist()
                rows = [row for row, good in zip(batch["rows"], finite, strict=True) if not good]
                names = ", ".join(self.train_set.ids[row] for row in rows[:10])
                raise TrainingError(
                    f"the loss is not finite at epoch {self.at.epoch}, batch {self.at.batch}, for "
                    f"{len(rows)} images: {names}. Look at them, or lower the learning rates"
                )
            loss = losses.mean()
            self.accelerator.backward(loss / config.accumulate)
        return float(loss.detach())

    def _update(self) -> None:
        """One optimiser step at the learning rates of this moment."""
        factor = learning_rate_factor(self.at, self.config, self.updates_per_epoch)
        for group in self.raw_optimiser.param_groups:
            group["lr"] = group["base_lr"] * factor
        if self.config.clip_norm:
            self.accelerator.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
        self.optimiser.step()
        self.optimiser.zero_grad()
        if self.ema is not None:
            self.ema.update(self.model)

    def _set_mode(self) -> None:
        """Train mode, but for what is frozen: dropout and statistics of the backbone, or these."""
        self.network.train()
        if self.frozen:
            self.model.eval()
            head_module(self.model, self.config.backbone).train()
        if self.config.norm_statistics == "frozen":
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    # ---- validation and the end of an epoch ----------------------------------------------------

    def validate(self) -> tuple[dict[str, Any], np.ndarray]:
        """Metrics and predicted means on the validation split, with the averaged weights if any."""
        current: dict[str, Tensor] | None = None
        if self.ema is not None:
            current = {name: value.clone() for name, value in self.model.state_dict().items()}
            self.model.load_state_dict(self.ema.state)
        predicted, rows, errors = predict_split(
            self.model, self.val_set, self.config, self.accelerator
        )
        note_unreadable(self.console, self.skipped_val, errors)
        if current is not None:
            self.model.load_state_dict(current)
        if not rows:
            raise TrainingError("no photo of the validation split is readable")
        target = self.val_frame[PROBABILITIES].to_numpy(np.float64)[rows]
        return metrics.evaluate(predicted, target), metrics.moments(predicted)[0]

    def _end_of_epoch(self, loss: float, speed: float) -> None:
        config, at = self.config, self.at
        result, means = self.validate()
        self.skipped = union(self.accelerator, self.skipped)
        self.skipped_val = union(self.accelerator, self.skipped_val)
        if at.judge(metrics.as_error(config.metric, result), config):
            self._checkpoint("best", result, means)
        record = {
            "epoch": at.epoch, "updates": at.update, "train_loss": loss,
            "images_per_second": round(speed, 2),
            **{name: entry["value"] for name, entry in result.items()},
        }  # fmt: skip
        if self.accelerator.is_main_process:
            self.files.log(record)
        self._say(
            f"epoch {at.epoch}: train EMD {loss:.4f}, validation EMD r=2 {record['emd_r2']:.4f}, "
            f"r=1 {record['emd_r1']:.4f}, Spearman {record['spearman_mean'] or math.nan:.4f}, "
            f"{speed:.1f} img/s"
        )
        at.epoch, at.batch, at.loss_sum = at.epoch + 1, 0, 0.0
        stopped = bool(config.patience) and at.stale >= config.patience
        if stopped:
            self._say(f"no better {config.metric} for {at.stale} epochs: stopped")
        at.done = stopped or at.epoch >= config.epochs
        if at.done:
            self._checkpoint("last", result, means)
        self._save()

    # ---- files -------------------------------------------------------------------------------

    def _checkpoint(self, name: str, result: dict[str, Any], means: np.ndarray) -> None:
        if self.accelerator.is_main_process:
            weights = self.ema.state if self.ema is not None else self.model.state_dict()
            self.files.checkpoint(
                name, weights, self.at.epoch, result, means,
                len(self.skipped), len(self.skipped_val),
            )  # fmt: skip

    def _save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        # A thawing backbone gets a new optimiser: the old one's state would not fit.
        thawing = self.frozen and self.at.epoch >= self.config.frozen_epochs
        self.files.save(
            {
                "processes": self.accelerator.num_processes,
                "model": self.model.state_dict(),
                "optimiser": None if thawing else self.raw_optimiser.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else None,
                "ema": None if self.ema is None else (self.ema.state, self.ema.updates),
                "at": dict(vars(self.at)),
                "skipped": self.skipped,
            }
        )

    def _load(self) -> dict[str, Any] | None:
        saved = self.files.load(self.accelerator.num_processes)
        if self.accelerator.is_main_process:
            self.files.start(0 if saved is None else saved["at"]["epoch"])
        if saved is None:
            return None
        self.model.load_state_dict(saved["model"])
        if self.ema is not None:
            self.ema.state, self.ema.updates = saved["ema"]
        self.at, self.skipped = Progressed(**saved["at"]), saved["skipped"]
        self._say(f"resuming at epoch {self.at.epoch}, batch {self.at.batch}")
        return saved

    def _say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            self.console.print(text)


def train(config: TrainConfig, console: Console) -> dict[str, Any]:
    """Run :class:`Trainer`; returns the best epoch's metrics."""
    return Trainer(config, console).run()
