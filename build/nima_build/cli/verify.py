"""``nima verify``: the parity gate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from nima_client._os_errors import in_words
from nima_client.cli._connection import Header, TlsCa, TlsCert, TlsKey, credentials

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command()
def verify(
    photos: Annotated[
        list[Path] | None,
        typer.Argument(help="Image files; the golden photos (scikit-image's) by default."),
    ] = None,
    network: Annotated[
        Path | None,
        typer.Option(help="Folder with model.onnx and model.json; the bundled one by default."),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Its checkpoint; the bundled one by default.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="host:port of a running server to compare too.")
    ] = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    header: Header = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the whole report here.")
    ] = None,
    update_golden: Annotated[
        bool, typer.Option("--update-golden", help="Recompute the committed golden scores.")
    ] = False,
) -> None:
    """Run the same photos through every artefact and compare with PyTorch.

    Exits with 1 when any stage is outside its tolerance, or the checkpoint is not the network's.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from nima_build.golden import GOLDEN_PATH, golden_photos
    from nima_build.metadata import ArtefactError
    from nima_build.paths import BUNDLED_CHECKPOINT
    from nima_build.repository import default_repository
    from nima_build.verify import make_golden, verify
    from nima_client._address import normalise_url
    from nima_client._files import check_output, write_atomic
    from nima_client.contract import NETWORK_MODEL
    from nima_client.library.text import counted, printable

    tls, headers = credentials(tls_ca, tls_cert, tls_key, header)
    try:
        if url is not None:
            normalise_url(url)
        if json_path is not None:
            check_output(json_path)
        folder = network or default_repository() / NETWORK_MODEL / "1"
        source = checkpoint
        if source is None and network is None and (update_golden or _is_bundled(folder)):
            source = BUNDLED_CHECKPOINT
        if update_golden:
            if source is None:
                raise ArtefactError("golden scores come from PyTorch: name the --checkpoint")
            golden = make_golden(folder, golden_photos(), source)
            golden.save()
            typer.echo(f"{GOLDEN_PATH}: {len(golden.scores)} scores")
        report = verify(
            folder,
            photos or golden_photos(),
            checkpoint=source,
            url=url,
            tls=tls,
            headers=headers,
        )
        if json_path is not None:
            write_atomic(json_path, (json.dumps(report.to_dict(), indent=2) + "\n").encode())
    except (ArtefactError, ValueError, OSError) as error:  # ValueError: a wrong address
        typer.echo(f"nima verify: {in_words(error)}", err=True)
        raise typer.Exit(1) from None

    table = Table(title=f"{counted(len(report.photos), 'photo')} against {report.reference}")
    for heading in ("stage", "", "mean ±", "allowed", "EMD", "allowed", "worst photo or reason"):
        table.add_column(heading, justify="right" if heading[:1] in "maE" else "left")
    for stage in report.stages:
        colour = {"pass": "green", "fail": "red", "skip": "dim"}[stage.status]
        limits = stage.tolerance
        table.add_row(
            stage.stage,
            f"[{colour}]{stage.status}[/]",
            "" if stage.mean_difference is None else f"{stage.mean_difference:.1e}",
            "" if limits is None else f"{limits.mean:g}",
            "" if stage.emd is None else f"{stage.emd:.1e}",
            "" if limits is None else f"{limits.emd:g}",
            # Names and reasons have brackets and colons of their own: 'nima-triton[tensorrt]'.
            Text(printable("; ".join(part for part in (stage.worst, stage.note) if part))),
        )
    Console().print(table)
    if not report.passed:
        typer.echo("nima verify: outside the tolerance", err=True)
        raise typer.Exit(1)


def _is_bundled(folder: Path) -> bool:
    """Whether the network in a folder was exported from the bundled checkpoint.

    Of one's own, in that place, it was not; and an installed wheel has no such checkpoint.
    """
    from nima_build.metadata import METADATA_NAME, ModelMetadata
    from nima_build.paths import BUNDLED_CHECKPOINT

    described = BUNDLED_CHECKPOINT / "checkpoint.json"
    exported = ModelMetadata.load(folder / METADATA_NAME).checkpoint_sha256
    if not described.is_file():
        return False
    # Not by the checkpoint's own reader, which needs torch. Whether it can be read at all, and its
    # weights are those it names, that one says.
    try:
        facts = json.loads(described.read_text())
    except ValueError:
        return True
    return not isinstance(facts, dict) or facts.get("weights_sha256") == exported
