"""The training loop, to be read in one sitting.

accelerate moves tensors, casts and averages gradients over processes; an update is in
:mod:`nima_training.learner`, everything else is here. A run is a sequence of updates; after any of
them its whole state can be written, and a run that was killed goes on from the last one written and
ends with the weights it would have had.
"""

from __future__ import annotations

import json
import math
import time
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader

from nima_training import metrics
from nima_training.config import TrainConfig
from nima_training.console import note_unreadable, progress_bar, say
from nima_training.data.dataset import (
    EpochBatches,
    Photos,
    collate,
    read_manifest,
)
from nima_training.data.manifest import data_sha256
from nima_training.data.sources import PROBABILITIES
from nima_training.learner import Learner
from nima_training.processes import make_accelerator, total, union, what_ran_out
from nima_training.run_dir import RunDirectory, TrainingError
from nima_training.schedule import Progressed, learning_rate_factor
from nima_training.validation import predict_split

MAX_EMPTY_BATCHES = 10
"""So many in a row without a readable photo are no chance: the photos are not where they were."""


class Trainer:
    """One run. ``Trainer(config, console).run()`` trains, resumes, and writes checkpoints."""

    def __init__(self, config: TrainConfig, console: Console) -> None:
        self.config, self.console = config, console
        if config.threads:
            torch.set_num_threads(config.threads)
        self.accelerator = make_accelerator(config)
        frame = read_manifest(config.manifest)
        self.files = RunDirectory(config, data_sha256(frame))
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
        if self.accelerator.is_main_process:
            self.files.claim()
        saved = self._saved = self.files.load(ranks)
        self.learner = Learner(config, self.accelerator, saved)
        self.model = self.learner.model
        self.at = Progressed()
        self.skipped: dict[int, str] = {}
        """Rows of the training split whose file could not be read, and why."""
        self.skipped_val: dict[int, str] = {}
        self.pending = 0
        """Readable photos behind the gradients of the next update, of this process."""
        self.pending_loss = 0.0
        """The sum of their losses."""
        self.empty = 0
        """Batches in a row without one."""

    # ---- one run ---------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train to the end; returns the metrics of the best epoch on the validation split."""
        config = self.config
        saved = self._load()
        if self.at.done:
            self._say(f"{config.out} is finished; its best epoch was {self.at.best_epoch}")
        elif config.frozen_epochs == config.epochs:
            self._say("only the head is trained: frozen_epochs is all of the epochs", "yellow")
        while not self.at.done:
            self.learner.start_phase(self.at.epoch < config.frozen_epochs, saved)
            saved = None
            while not self.at.done:
                self._epoch()
                if self.at.epoch == config.frozen_epochs:
                    break  # the backbone thaws: parameters and optimiser are prepared anew
        self.accelerator.wait_for_everyone()  # the main process may still be writing it
        best: dict[str, Any] = json.loads((config.out / "best" / "checkpoint.json").read_text())
        return dict(best["metrics"])

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
        self.learner.set_mode()
        with progress_bar(self.console, self.accelerator.is_main_process) as bar:
            task = bar.add_task("", total=usable, completed=at.batch)
            for batch in loader:
                if at.batch >= usable:
                    break
                self._micro_batch(batch)
                seen += 1
                at.batch += 1
                if at.batch % config.accumulate == 0:
                    due = time.monotonic() - last_save >= config.save_seconds
                    if self._update(due):
                        self._save()
                        last_save = time.monotonic()
                speed = seen * config.batch_size * ranks / (time.monotonic() - started)
                bar.update(task, advance=1, description=f"epoch {at.epoch} {speed:.1f} img/s")
        speed = seen * config.batch_size * ranks / max(1e-9, time.monotonic() - started)
        self._end_of_epoch(speed)

    def _micro_batch(self, batch: dict[str, Any]) -> None:
        """Gradients of one micro-batch, and its losses."""
        at = self.at
        note_unreadable(self.console, self.skipped, batch["errors"])
        self.empty = 0 if batch["rows"] else self.empty + 1
        if self.empty >= MAX_EMPTY_BATCHES:
            raise TrainingError(
                f"no photo of {self.empty} batches in a row is readable, e.g. "
                f"{batch['errors'][0][1]}: look at the photos of {self.config.photos}"
            )
        # Dropout must not depend on where a run was resumed.
        torch.manual_seed(
            hash((self.config.seed, at.epoch, at.batch, self.accelerator.process_index))
        )
        losses = self.learner.backward(batch, (at.batch + 1) % self.config.accumulate == 0)
        if not torch.isfinite(losses).all():
            finite = torch.isfinite(losses).tolist()
            rows = [row for row, good in zip(batch["rows"], finite, strict=True) if not good]
            names = ", ".join(self.train_set.ids[row] for row in rows[:10])
            raise TrainingError(
                f"the loss is not finite at epoch {at.epoch}, batch {at.batch}, for "
                f"{len(rows)} images: {names}. Look at them, or lower the learning rates"
            )
        self.pending += len(losses)
        self.pending_loss += float(losses.sum())

    def _update(self, due: bool) -> bool:
        """One update; whether the main process is ``due`` to save."""
        # In one exchange: every process takes part in the saving, and knows all photos.
        main = self.accelerator.is_main_process
        photos, loss, save = total(
            self.accelerator, self.pending, self.pending_loss, int(due and main)
        )
        factor = learning_rate_factor(self.at, self.config, self.updates_per_epoch)
        self.learner.update(factor, int(photos))
        self.pending, self.pending_loss = 0, 0.0
        self.at.photos += int(photos)
        self.at.loss_sum += loss
        self.at.update += 1
        return bool(save)

    # ---- validation and the end of an epoch ----------------------------------------------------

    def validate(self) -> tuple[dict[str, Any], np.ndarray]:
        """Metrics and predicted means on the validation split, with the averaged weights if any."""
        current: dict[str, Tensor] | None = None
        if self.learner.ema is not None:
            current = {name: value.clone() for name, value in self.model.state_dict().items()}
            self.model.load_state_dict(self.learner.averaged())
        predicted, rows, errors = predict_split(
            self.model, self.val_set, self.config, self.accelerator
        )
        note_unreadable(self.console, self.skipped_val, errors)
        if current is not None:
            self.model.load_state_dict(current)
        if not rows:
            raise TrainingError("no photo of the validation split is readable")
        if not np.isfinite(predicted).all():
            raise TrainingError(
                f"the predictions on the validation split are not finite after update "
                f"{self.at.update}: the training diverged. Lower the learning rates"
            )
        target = self.val_frame[PROBABILITIES].to_numpy(np.float64)[rows]
        return metrics.evaluate(predicted, target), metrics.moments(predicted)[0]

    def _end_of_epoch(self, speed: float) -> None:
        config, at = self.config, self.at
        if at.photos == 0:
            raise TrainingError(f"no training photo of epoch {at.epoch} is readable")
        loss = at.loss_sum / at.photos
        result, means = self.validate()
        self.skipped = union(self.accelerator, self.skipped)
        self.skipped_val = union(self.accelerator, self.skipped_val)
        if at.judge(metrics.as_error(config.metric, result), config):
            self._checkpoint("best", at.epoch, result, means)
        record = {
            "epoch": at.epoch, "updates": at.update, "train_loss": loss,
            "images_per_second": round(speed, 2),
            **{name: entry["value"] for name, entry in result.items()},
        }  # fmt: skip
        if self.accelerator.is_main_process:
            self.files.log(record)
        shown = {name: math.nan if value is None else value for name, value in record.items()}
        self._say(
            f"epoch {at.epoch}: train EMD {shown['train_loss']:.4f}, "
            f"validation EMD r=2 {shown['emd_r2']:.4f}, r=1 {shown['emd_r1']:.4f}, "
            f"Spearman {shown['spearman_mean']:.4f}, {speed:.1f} img/s"
        )
        epoch = at.epoch
        if at.next_epoch(config):
            self._say(f"no better {config.metric} for {at.stale} epochs: stopped")
        if at.done:
            self._checkpoint("last", epoch, result, means)
        self._save()

    # ---- files -------------------------------------------------------------------------------

    def _checkpoint(self, name: str, epoch: int, result: dict[str, Any], means: np.ndarray) -> None:
        if self.accelerator.is_main_process:
            self.files.checkpoint(
                name, self.learner.averaged(), epoch, result, means,
                len(self.skipped), len(self.skipped_val),
            )  # fmt: skip

    def _save(self) -> None:
        """Write the state; every process has to take part."""
        self.skipped = union(self.accelerator, self.skipped)
        if self.accelerator.is_main_process:
            self.files.save(
                {
                    "processes": self.accelerator.num_processes,
                    **self.learner.state(),
                    "at": dict(vars(self.at)),
                    "skipped": self.skipped,
                }
            )

    def _load(self) -> dict[str, Any] | None:
        saved, self._saved = self._saved, None
        if self.accelerator.is_main_process:
            self.files.start(0 if saved is None else saved["at"]["epoch"])
        if saved is None:
            return None
        self.at, self.skipped = Progressed(**saved["at"]), saved["skipped"]
        self._say(f"resuming at epoch {self.at.epoch}, batch {self.at.batch}")
        return saved

    def _say(self, text: str, style: str | None = None) -> None:
        if self.accelerator.is_main_process:
            say(self.console, text, style)


def train(config: TrainConfig, console: Console) -> dict[str, Any]:
    """Run :class:`Trainer`; returns the best epoch's metrics.

    Raises:
        TrainingError: the run cannot go on.
    """
    try:
        return Trainer(config, console).run()
    except RuntimeError as error:
        if (reason := what_ran_out(error, config)) is None:
            raise
        raise TrainingError(reason) from error
