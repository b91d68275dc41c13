"""The files of a training run: ``config.json``, ``state.pt``, ``history.jsonl``, checkpoints, logs.

<out>/config.json     the settings the run was started with
<out>/state.pt        everything needed to go on from the last saved update
<out>/history.jsonl   one line an epoch
<out>/tensorboard/    the same figures for TensorBoard
<out>/best/, last/    checkpoints
<out>/.lock           empty; held while a run writes here
"""

from __future__ import annotations

import json
from typing import IO, Any

import numpy as np
from torch import Tensor

from nima_client._files import (
    check_output_folder,
    make_parent,
    remove_unfinished,
    write_atomic,
)
from nima_training.checkpoint import reference_quantiles, save_checkpoint
from nima_training.checkpoint_files import remove_half_written
from nima_training.config import TrainConfig
from nima_training.files import write_json
from nima_training.models import create_model, pruned_widths
from nima_training.state import StateError, load_state, save_state

STATE_FILE, HISTORY_FILE, CONFIG_FILE = "state.pt", "history.jsonl", "config.json"
LOCK_FILE = ".lock"
# What a resumed run may change without becoming another run.
FREE_FIELDS = frozenset({"workers", "threads", "save_seconds", "cpu", "compile", "out"})


class TrainingError(RuntimeError):
    """The run cannot go on; the message says why and names images where some are to blame."""


class RunDirectory:
    """Reads and writes the files of one run; only the main process may write.

    Raises:
        OSError: ``config.out`` cannot be written into.
    """

    def __init__(self, config: TrainConfig, data_sha256: str) -> None:
        check_output_folder(config.out)
        self.config, self.data_sha256 = config, data_sha256
        self._lock: IO[bytes] | None = None

    def claim(self) -> None:
        """Keep a second run out; the system lets go when this process ends, however it does.

        Raises:
            TrainingError: another run is writing here.
        """
        path = self.config.out / LOCK_FILE
        make_parent(path)
        self._lock = path.open("ab")
        try:
            import fcntl

            # No flock: workers inherit it, and outlive a killed run by seconds.
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise TrainingError(
                f"another run is writing to {self.config.out}: let it end, or choose another --out"
            ) from None
        except (ModuleNotFoundError, OSError):  # Windows; a file system without locks
            return

    def load(self, processes: int) -> dict[str, Any] | None:
        """The state to go on from, or None for a new run.

        Raises:
            TrainingError: the directory holds a run with other settings, data or processes.
            StateError: the state is damaged, or no run's.
        """
        saved = load_state(self.config.out / STATE_FILE)
        if saved is None:
            return None
        if not {"config", "data_sha256", "at", "model"} <= saved.keys():
            raise StateError(f"{self.config.out / STATE_FILE} is no state of a run: delete it")
        if saved.get("processes", processes) != processes:
            raise TrainingError(
                f"{self.config.out} holds a run of {saved['processes']} processes, and this is one "
                f"of {processes}: batches would differ. Start as many, or choose another --out"
            )
        changed = {
            name
            for name, value in self.config.to_dict().items()
            if name not in FREE_FIELDS
            and json.dumps(saved["config"].get(name)) != json.dumps(value)
        }
        if changed or saved["data_sha256"] != self.data_sha256:
            what = ", ".join(sorted(changed)) or "the data"
            raise TrainingError(
                f"{self.config.out} holds a run with other settings ({what}): choose another --out"
            )
        return saved

    def start(self, epoch: int) -> None:
        """Note the settings; forget what a killed run wrote of ``epoch``, which is done again.

        What it had half written is removed: each is as large as a state or a checkpoint.
        """
        for name in (STATE_FILE, HISTORY_FILE, CONFIG_FILE):
            remove_unfinished(self.config.out / name)
        for name in ("best", "last"):
            remove_half_written(self.config.out / name)
        write_json(self.config.out / CONFIG_FILE, self.config.to_dict())
        history = self.config.out / HISTORY_FILE
        if history.exists():
            lines = history.read_text(encoding="utf-8").splitlines(keepends=True)
            # An epoch is one whole line, so a line cut short is of the epoch done again.
            write_atomic(history, "".join(lines[:epoch]).encode())

    def save(self, state: dict[str, Any]) -> None:
        """Replace the saved state, atomically."""
        settings = {"config": self.config.to_dict(), "data_sha256": self.data_sha256}
        save_state(self.config.out / STATE_FILE, {**settings, **state})

    def checkpoint(
        self,
        name: str,
        weights: dict[str, Tensor],
        epoch: int,
        result: dict[str, Any],
        means: np.ndarray,
        skipped: int,
        skipped_val: int,
    ) -> None:
        """Write ``weights`` as the checkpoint ``name``.

        Args:
            name: ``"best"`` or ``"last"``.
            weights: a state dict of the backbone with its head.
            epoch: that the weights are from.
            result: metrics on the validation split.
            means: predicted means there, for the reference quantiles.
            skipped: training files that could not be read.
            skipped_val: validation files that could not be read.
        """
        config = self.config
        widths = pruned_widths(config.backbone, weights)
        model = create_model(config.backbone, "none", config.dropout, widths)
        model.load_state_dict(weights)
        save_checkpoint(
            config.out / name,
            model,
            {
                "name": config.name,
                "backbone": config.backbone,
                **({} if widths is None else {"widths": widths}),
                "dropout": config.dropout,
                "preprocessing": config.preprocessing.to_dict(),
                "reference": {
                    "set": f"validation split of {config.manifest.name}, {len(means)} photos",
                    "quantiles": reference_quantiles(means),
                },
                "training": {"command": "train", "epoch": epoch, **config.to_dict()},
                "data_sha256": self.data_sha256,
                "metrics": {
                    "validation": result,
                    "skipped_files": skipped,
                    "skipped_validation_files": skipped_val,
                },
            },
        )

    def log(self, record: dict[str, Any]) -> None:
        """Append an epoch's figures to the history and to TensorBoard's files."""
        from torch.utils.tensorboard import SummaryWriter

        with (self.config.out / HISTORY_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        with SummaryWriter(str(self.config.out / "tensorboard")) as writer:
            for name, value in record.items():
                if value is not None and name != "epoch":
                    writer.add_scalar(name, value, record["epoch"])
