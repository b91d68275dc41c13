"""The ``nima`` command: a table of subcommands, each imported only when it is called.

The bare install is the client only. A subcommand names the module that holds it and the extra that
brings its packages; when one is missing, the user reads which extra to install, in one line.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass

PROJECT = "nima-triton"


@dataclass(frozen=True)
class Command:
    """Where one subcommand lives."""

    target: str
    extra: str
    help: str


COMMANDS: dict[str, Command] = {
    "score": Command("nima_client.cli.score:app", "cli", "Score photos, folders and archives."),
    "report": Command("nima_client.cli.report:app", "report", "One HTML page that ranks photos."),
    "compare": Command("nima_client.cli.compare:app", "report", "Compare two sets of scores."),
    "serve": Command("nima_build.cli.serve:app", "serve", "Serve the model with Triton, here."),
    "doctor": Command("nima_build.cli.doctor:app", "serve", "Check a deployment; say what to do."),
    "bench": Command("nima_build.cli.bench:app", "serve", "Load-test a server."),
    "perf-inputs": Command(
        "nima_build.cli.perf_inputs:app", "serve", "Make perf_analyzer inputs from photos."
    ),
    "export": Command("nima_build.cli.export:app", "build", "Checkpoint to ONNX."),
    "build": Command("nima_build.cli.build:app", "build", "ONNX to TensorRT engine."),
    "verify": Command("nima_build.cli.verify:app", "build", "Parity gate over every artefact."),
    "prepare": Command("nima_training.cli.prepare:app", "train", "Ratings and photos to a manifest."),
    "train": Command("nima_training.cli.train:app", "train", "Train a NIMA network."),
    "evaluate": Command("nima_training.cli.evaluate:app", "train", "Metrics and an HTML page."),
    "analyse": Command("nima_training.cli.analyse:app", "train", "Score against distortion."),
    "import": Command("nima_training.cli.import_:app", "train", "Published weights to a checkpoint."),
    "distill": Command("nima_training.cli.distill:app", "train", "Train a student on a teacher."),
}


def _missing(name: str, extra: str, module: str) -> str:
    return (
        f"nima {name} needs the package {module!r}, which the extra {extra!r} brings: "
        f"pip install '{PROJECT}[{extra}]'"
    )


def _exists(command: Command) -> bool:
    """Whether this installation holds the module of a command (found without importing it)."""
    module, _, _ = command.target.partition(":")
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def main(argv: list[str] | None = None) -> None:
    """Entry point of the ``nima`` script."""
    try:
        import click
        import typer
    except ModuleNotFoundError as error:
        sys.exit(_missing("", "cli", error.name or "typer").replace("nima  needs", "nima needs"))

    class LazyGroup(typer.core.TyperGroup):
        """Resolves a subcommand by the table above, at the moment it is asked for."""

        def list_commands(self, ctx: click.Context) -> list[str]:
            return [name for name, command in COMMANDS.items() if _exists(command)]

        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            entry = COMMANDS.get(cmd_name)
            if entry is None or not _exists(entry):
                return None
            module, _, attribute = entry.target.partition(":")
            try:
                app = getattr(importlib.import_module(module), attribute)
            except ModuleNotFoundError as error:
                if (error.name or "").startswith("nima_"):
                    raise
                ctx.fail(_missing(cmd_name, entry.extra, error.name or module))
            command = typer.main.get_command(app)
            command.name = cmd_name
            return command

        def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
            rows = [(name, COMMANDS[name].help) for name in self.list_commands(ctx)]
            with formatter.section("Commands"):
                formatter.write_dl(rows)

        def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
            # Plain click help: the rich one would import every subcommand to describe it.
            click.Group.format_help(self, ctx, formatter)

    from nima_client import __version__

    group = LazyGroup(
        name="nima",
        help="Score photos with NIMA: predict how people would rate them from 1 to 10.",
        params=[
            click.Option(
                ["--version"],
                is_flag=True,
                expose_value=False,
                is_eager=True,
                callback=lambda ctx, _param, value: (
                    (click.echo(f"nima {__version__}"), ctx.exit()) if value else None
                ),
                help="Print the version and exit.",
            )
        ],
        no_args_is_help=True,
    )
    try:
        group(args=argv, prog_name="nima")
    except ModuleNotFoundError as error:
        # A heavy import inside the command itself.
        name = (argv or sys.argv[1:] or [""])[0]
        entry = COMMANDS.get(name)
        if entry is None or (error.name or "").startswith("nima_"):
            raise
        sys.exit(_missing(name, entry.extra, error.name or "?"))


if __name__ == "__main__":
    main()
