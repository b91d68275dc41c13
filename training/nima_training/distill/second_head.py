"""What a second head on the same backbone would be worth: fitted, measured, not shipped.

python -m nima_training.distill.second_head CHECKPOINT --photos FOLDER --teacher TFLITE

The backbone stays as it is, so the first head loses nothing; the second one, a linear layer on the
same pooled features, follows another teacher (the technical NIMA, say) as far as they allow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command()
def second_head(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of a distilled MobileNet.")],
    photos: Annotated[Path, typer.Option(help="The folder of photos it was distilled on.")],
    teacher: Annotated[Path, typer.Option(help="TFLite NIMA that the second head follows.")],
    views: Annotated[int, typer.Option(min=256, help="Views to fit it on.")] = 4096,
    threads: Annotated[int, typer.Option(min=1, help="Threads of network and teacher.")] = 2,
) -> None:
    """Print one line of agreement for each held-out set."""
    import torch
    from torch import nn

    from nima_training.checkpoint import load_checkpoint
    from nima_training.distill.agreement import HeldOut, agreement_line
    from nima_training.distill.config import ViewConfig
    from nima_training.distill.head import fit_head
    from nima_training.distill.photos import split_photos
    from nima_training.distill.stream import Views, batches
    from nima_training.distill.teacher import FloatTeacher, TFLiteTeacher
    from nima_training.folded import with_folded_norms
    from nima_training.inference import network_input
    from nima_training.models import head_module

    torch.set_num_threads(threads)
    loaded = load_checkpoint(checkpoint)
    seed = int(loaded.meta["training"]["seed"])
    split = split_photos(photos, seed)
    judge, labels_of = TFLiteTeacher(teacher, threads), FloatTeacher(teacher)
    blocks = with_folded_norms(loaded.model.get_submodule("features"))
    stream = Views(split["train"], loaded.spec, ViewConfig(), seed)
    features, labels = [], []
    with torch.no_grad():
        for pixels in batches(stream, range(views), 32, workers=1):
            x = network_input(pixels.numpy(), loaded.spec)
            features.append(blocks(x).mean((2, 3)))
            labels.append(labels_of(x)[0])
    cut = max(1, len(features) // 8)
    layer, _, _ = fit_head(
        torch.cat(features[cut:]), torch.cat(labels[cut:]),
        torch.cat(features[:cut]), torch.cat(labels[:cut]),
    )  # fmt: skip
    linear = head_module(loaded.model, loaded.meta["backbone"]).get_submodule("1")
    assert isinstance(linear, nn.Linear)
    linear.load_state_dict(layer.state_dict())
    for part, values in (
        HeldOut(split["test"], judge, loaded.spec, seed).measure(loaded.model).items()
    ):
        typer.echo(agreement_line(part, values))


if __name__ == "__main__":
    app()
