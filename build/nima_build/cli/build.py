"""``nima build``: ONNX to a TensorRT engine, or a checkpoint to a package of PyTorch."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from nima_client._os_errors import in_words
from nima_client.contract import MAX_BATCH_SIZE

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


class _Target(str, Enum):
    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt-rtx"
    inductor = "inductor"


class _Device(str, Enum):
    cuda = "cuda"
    cpu = "cpu"


class _Precision(str, Enum):
    fp16 = "fp16"
    fp32 = "fp32"


@app.command()
def build(
    target: Annotated[
        _Target,
        typer.Option(
            help="tensorrt serves in Triton; tensorrt-rtx compiles without a GPU; "
            "inductor needs PyTorch alone."
        ),
    ] = _Target.tensorrt,
    onnx: Annotated[
        Path | None, typer.Option(help="model.onnx of `nima export`; the bundled one by default.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Engine file; model.plan, model.rtx.plan or model.pt2 beside the ONNX.",
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="For inductor: of the ONNX; the bundled one by default.")
    ] = None,
    device: Annotated[
        _Device, typer.Option(help="For inductor: cpu compiles without a GPU.")
    ] = _Device.cuda,
    precision: Annotated[_Precision, typer.Option(help="Of the network's body.")] = _Precision.fp16,
    min_batch: Annotated[int, typer.Option(min=1, help="Smallest batch.")] = 1,
    opt_batch: Annotated[int, typer.Option(min=1, help="Batch to tune for.")] = 8,
    max_batch: Annotated[
        int | None, typer.Option(min=1, help=f"Largest batch; {MAX_BATCH_SIZE}, inductor 128.")
    ] = None,
    workspace_mib: Annotated[int, typer.Option(min=1, help="Memory for tactics, in MiB.")] = 2048,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Runs on later TensorRT versions too.")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="Runs on every GPU from Ampere on.")
    ] = False,
    compute_capability: Annotated[
        str | None, typer.Option(help="For tensorrt-rtx without a GPU, e.g. 8.9.")
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(help="Measured tactics; model.timing.cache beside the engine.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Rebuild an unchanged engine.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether the engine there fits this machine.")
    ] = False,
) -> None:
    """Build the engine of the model, or say in one line why it cannot be built here.

    An engine that already fits the model, the options, the GPU and the TensorRT is kept. Beside it
    lies model.plan.json, which says what it was built from and for. A package of PyTorch (inductor:
    model.pt2) is treated alike; of the options of TensorRT it has precision and the largest batch.
    """
    from rich.progress import Progress, TaskID

    from nima_build.cli._inductor import build_inductor
    from nima_build.engine import build_engine, check_engine_here
    from nima_build.engine_manifest import PLAN_NAME, RTX_PLAN_NAME, EngineOptions
    from nima_build.metadata import ArtefactError
    from nima_build.repository import ONNX_NAME, default_repository
    from nima_build.tensorrt_api import EngineError
    from nima_client.cli._console import open_console
    from nima_client.contract import NETWORK_MODEL

    try:
        source = onnx or default_repository() / NETWORK_MODEL / "1" / ONNX_NAME
        if not source.is_file():
            raise ArtefactError(f"no {source}: run `nima export` first")
        plan_name = RTX_PLAN_NAME if target is _Target.tensorrt_rtx else PLAN_NAME
        plan = output or source.with_name(plan_name)
        if target is _Target.inductor:
            done = build_inductor(
                source,
                output,
                checkpoint=checkpoint,
                device=device.value,
                precision=precision.value,
                max_batch=max_batch,
                force=force,
                check=check,
            )
            typer.echo(done)
            return
        if check:
            manifest = check_engine_here(plan, source)
            typer.echo(f"{plan}: fits (TensorRT {manifest.runtime_version})")
            return
        options = EngineOptions(
            precision=precision.value,
            min_batch=min_batch,
            opt_batch=opt_batch,
            max_batch=MAX_BATCH_SIZE if max_batch is None else max_batch,
            workspace_mib=workspace_mib,
            version_compatible=version_compatible,
            hardware_compatible=hardware_compatible,
        )
        console = open_console(stderr=True)
        with Progress(console=console, transient=True, disable=not console.is_interactive) as bars:
            tasks: dict[str, TaskID] = {}

            def progress(phase: str, done: int, total: int) -> None:
                if not tasks and not console.is_interactive:
                    # A log shows no bars, and this takes minutes.
                    typer.echo(f"nima build: building the engine of {source} …", err=True)
                if phase not in tasks:
                    tasks[phase] = bars.add_task(phase, total=total)
                bars.update(tasks[phase], completed=done, total=total)

            manifest, built = build_engine(
                source,
                plan,
                options,
                target=target.value,
                compute_capability=compute_capability,
                timing_cache=timing_cache or plan.with_name("model.timing.cache"),
                progress=progress,
                force=force,
            )
    except (EngineError, ArtefactError, ValueError, OSError) as error:
        typer.echo(f"nima build: {in_words(error)}", err=True)
        raise typer.Exit(1) from None
    typer.echo(
        f"{plan}: {'built' if built else 'up to date'}, {plan.stat().st_size / 1e6:.1f} MB, "
        f"{manifest.options.precision}, batch {manifest.options.min_batch} to "
        f"{manifest.options.max_batch}, TensorRT {manifest.runtime_version}, "
        f"compute capability {manifest.compute_capability}"
    )
