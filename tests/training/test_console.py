"""What a run prints: names as they are, one line each."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from nima_training.config import TrainConfig
from nima_training.console import note_unreadable
from nima_training.loop import train


def test_names_are_printed_as_they_are() -> None:
    console = Console(file=io.StringIO(), width=40)
    known: dict[int, str] = {}
    reason = "a [copy] :cat: [/b].jpg: [Errno 2] No such file or directory: '/photos [raw]/a'"
    note_unreadable(console, known, [(3, reason), (3, reason)])
    assert console.file.getvalue() == f"skipped {reason}\n"  # type: ignore[attr-defined]
    assert known == {3: reason}


def test_a_line_of_a_run_is_one_line(
    small_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    console = Console(file=io.StringIO(), width=40)
    out = tmp_path / "run [a]"
    config = small_config(out, batch_size=16, epochs=1, frozen_epochs=1)
    train(config, console)
    train(config, console)
    head, epoch, resuming, finished = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert head.startswith("only the head is trained: ")
    assert epoch.startswith("epoch 0: train EMD ")
    assert epoch.endswith(" img/s")
    assert resuming.startswith("resuming at epoch 1")
    assert finished == f"{out} is finished; its best epoch was 0"
