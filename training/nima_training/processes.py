"""What the processes of a run share: a device and precision, statistics, and what they found."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object, reduce
from torch import nn

from nima_training.config import TrainConfig
from nima_training.run_dir import TrainingError


def make_accelerator(config: TrainConfig) -> Accelerator:
    """The accelerator of ``config``.

    Raises:
        TrainingError: the device lacks the precision.
    """
    cpu = config.cpu or not torch.accelerator.is_available()
    if config.precision == "fp16" and cpu:
        # accelerate would compute in FP32 without a word.
        raise TrainingError("precision = 'fp16' needs a GPU; a CPU can do 'bf16' or 'no'")
    try:
        # Not told of a CPU that it has to find itself, it would not join the processes of torchrun:
        # each would be a run of its own, into the same folder.
        return Accelerator(mixed_precision=config.precision, cpu=cpu)
    except ValueError as error:  # accelerate's words on a precision the device lacks
        raise TrainingError(f"precision = {config.precision!r}: {error}") from error


@torch.no_grad()
def share_buffers(model: nn.Module) -> None:
    """Give every process the buffers of process 0, in place.

    Batch norms take their running statistics from what their own process sees; those of process 0
    are the ones that a checkpoint saves.
    """
    for buffer in model.buffers():
        broadcast(buffer)  # leaves a single process alone


def total(accelerator: Accelerator, *values: float) -> list[float]:
    """The sum of each value over all processes, the same on every process."""
    if accelerator.num_processes == 1:
        return list(values)
    mine = torch.tensor(values, dtype=torch.float64, device=accelerator.device)
    summed: list[float] = reduce(mine, "sum").tolist()
    return summed


def union(accelerator: Accelerator, found: dict[int, str]) -> dict[int, str]:
    """What any process found, by row and ascending, the same on every process."""
    items = list(found.items())
    return dict(sorted(gather_object(items) if accelerator.num_processes > 1 else items))


def what_ran_out(error: RuntimeError, config: TrainConfig) -> str | None:
    """What to do about memory that ran out, or a process that did; None for other errors."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in text:
        return (
            f"there is too little memory for batches of {config.batch_size}: set a smaller "
            "batch_size, and accumulate, which keeps the size of an update"
        )
    if text.startswith("DataLoader worker"):
        return (
            f"a process that reads photos was killed, as by the system when memory runs out "
            f"({text.splitlines()[0].strip(' .')}): set fewer workers; in a container, give it "
            "more shared memory (docker run --shm-size). The same command goes on"
        )
    return None
