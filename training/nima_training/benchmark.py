"""What training costs on this machine: decoding per core, and a training step per backbone.

python -m nima_training.benchmark PHOTOS [--backbone mobilenet_v2 …]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from nima_client._os_errors import in_words

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def rates(work: Callable[[], int], seconds: float = 3.0) -> list[float]:
    """Items per second of repeated calls of ``work``, each returning how many it did."""
    work()
    found: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found) < 3:
        start = time.perf_counter()
        count = work()
        found.append(count / (time.perf_counter() - start))
    return found


def line(name: str, values: list[float], batch: int | None = None) -> str:
    """Median and range of the rates; with ``batch``, the time of a step too."""
    middle = statistics.median(values)
    text = f"{name:52} {middle:8.1f} img/s  ({min(values):.1f}..{max(values):.1f}, n={len(values)})"
    return text if batch is None else f"{text}  {1000 * batch / middle:.0f} ms a step"


@app.command()
def benchmark(
    photos: Annotated[Path, typer.Argument(help="Folder of photos.")],
    backbone: Annotated[list[str] | None, typer.Option(help="Backbone; repeat.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images a step.")] = 16,
    threads: Annotated[int, typer.Option(min=1, help="Threads of a training step.")] = 1,
    seconds: Annotated[float, typer.Option(help="Time for each figure.")] = 3.0,
) -> None:
    """Print decoding and augmentation per core, and the training step per backbone."""
    import pandas as pd
    import torch

    from nima_client.preprocess import PreprocessSpec
    from nima_training.data.dataset import Augmentation, Photos
    from nima_training.data.sources import PROBABILITIES
    from nima_training.distill.photos import list_photos
    from nima_training.losses import EMDLoss
    from nima_training.models import BACKBONES, create_model

    chosen_backbones = backbone or ["mobilenet_v2", "mobilenet_v3_small", "resnet50"]
    try:
        paths = list_photos(photos)[:64]
        if unknown := [name for name in chosen_backbones if name not in BACKBONES]:
            raise ValueError(f"unknown backbones {unknown}; known: {', '.join(sorted(BACKBONES))}")
    except (ValueError, OSError) as error:
        typer.echo(f"nima_training.benchmark: {in_words(error)}", err=True)
        raise typer.Exit(2) from error
    torch.set_num_threads(1)
    frame = pd.DataFrame({"image_id": [path.stem for path in paths]})
    frame["path"] = [path.relative_to(photos) for path in paths]
    frame[PROBABILITIES] = 0.1
    spec = PreprocessSpec()
    typer.echo(f"{len(paths)} photos of {photos.name}")
    for name, augmentation in (("evaluation", None), ("training view", Augmentation())):
        data = Photos(frame, photos, spec, augmentation)
        rows = iter(range(10**9))

        def decode(data: Photos = data, rows: object = rows) -> int:
            for _ in range(8):
                sample = data[next(rows) % len(data)]  # type: ignore[call-overload]
                if "error" in sample:
                    raise typer.BadParameter(f"{sample['error']}: leave it out")
            return 8

        typer.echo(line(f"decode, one core, {name}", rates(decode, seconds)))
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loss = EMDLoss()
    for chosen in chosen_backbones:
        size = BACKBONES[chosen].input_size
        model = create_model(chosen, "none").to(device).train()
        model.to(memory_format=torch.channels_last)
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)
        x = torch.randn(batch, 3, size, size, device=device)
        x = x.contiguous(memory_format=torch.channels_last)
        target = torch.full((batch, 10), 0.1, device=device)

        def step(
            model: torch.nn.Module = model, x: torch.Tensor = x, target: torch.Tensor = target,
            optimiser: torch.optim.Optimizer = optimiser,
        ) -> int:  # fmt: skip
            loss(model(x), target).backward()
            optimiser.step()
            optimiser.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize()
            return batch

        label = f"step, {chosen}, batch {batch}, {threads} threads, {device.type}"
        typer.echo(line(label, rates(step, seconds), batch))


if __name__ == "__main__":
    app()
