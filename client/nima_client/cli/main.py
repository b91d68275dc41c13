"""The ``nima`` command: a table of subcommands, each imported only when it is called.

The bare install is the client only. A subcommand names the module that holds it and the extra that
brings its packages; when one is missing, the user reads which extra to install, in one line.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import importlib.util
import re
import sys
from collections import Counter
from dataclasses import dataclass

from nima_client._signals import stoppable
from nima_client.cli._output import have_stderr, output_may_end

PROJECT = "nima-triton"
_OPTIONAL = re.compile(r"(?P<name>[\w.-]+).*\bextra == ['\"](?P<extra>[\w.-]+)['\"].*")


_ANEW = "no file is left half written; the same command starts again"
_GOES_ON = "the same command goes on with what is kept"


@dataclass(frozen=True)
class Command:
    """Where one subcommand lives.

    Attributes:
        target: module and attribute.
        extra: brings its packages.
        help: one line.
        kept: what an interrupted run leaves and how to go on, unless the command itself says it.
    """

    target: str
    extra: str
    help: str
    kept: str = _ANEW


COMMANDS: dict[str, Command] = {
    "score": Command("nima_client.cli.score:app", "cli", "Score photos, folders and archives.", ""),
    "report": Command("nima_client.cli.report:app", "report", "One HTML page that ranks photos."),
    "compare": Command("nima_client.cli.compare:app", "report", "Compare two sets of scores.", ""),
    "serve": Command("nima_build.cli.serve:app", "serve", "Serve the model with Triton, here.", ""),
    "doctor": Command(
        "nima_build.cli.doctor:app", "serve", "Check a deployment; say what to do.", ""
    ),
    "bench": Command("nima_build.cli.bench:app", "serve", "Load-test a server."),
    "perf-inputs": Command(
        "nima_build.cli.perf_inputs:app", "serve", "Make perf_analyzer inputs from photos."
    ),
    "export": Command("nima_build.cli.export:app", "build", "Checkpoint to ONNX."),
    "build": Command("nima_build.cli.build:app", "build", "ONNX to TensorRT engine."),
    "verify": Command("nima_build.cli.verify:app", "build", "Parity gate over every artefact."),
    "prepare": Command(
        "nima_training.cli.prepare:app", "train", "Ratings and photos to a manifest.", _GOES_ON
    ),
    "train": Command("nima_training.cli.train:app", "train", "Train a NIMA network.", _GOES_ON),
    "evaluate": Command("nima_training.cli.evaluate:app", "train", "Metrics and an HTML page."),
    "analyse": Command("nima_training.cli.analyse:app", "train", "Score against distortion."),
    "import": Command(
        "nima_training.cli.import_:app", "train", "Published weights to a checkpoint."
    ),
    "distill": Command(
        "nima_training.cli.distill:app", "train", "Train a student on a teacher.", _GOES_ON
    ),
}


def _extra_with(module: str, default: str) -> str:
    """The extra that brings a module: ``default``, the command's own, or the smallest that does."""
    try:
        requirements = importlib.metadata.requires(PROJECT) or []
    except importlib.metadata.PackageNotFoundError:
        return default
    package = module.partition(".")[0].replace("_", "-")
    extras = [match for r in requirements if (match := _OPTIONAL.fullmatch(r))]
    size = Counter(match["extra"] for match in extras)
    found = {match["extra"] for match in extras if match["name"].lower() == package}
    return default if default in found or not found else min(found, key=lambda e: size[e])


def _missing(name: str, extra: str, module: str) -> str:
    extra = _extra_with(module, extra)
    return (
        f"nima {name} needs the package {module!r}, which the extra {extra!r} brings: "
        f"pip install '{PROJECT}[{extra}]'"
    )


def _exists(command: Command) -> bool:
    """Whether this installation holds the module of a command (found without importing it)."""
    try:
        return importlib.util.find_spec(command.target.partition(":")[0]) is not None
    except ModuleNotFoundError:
        return False


def _help() -> str:
    rows = [(name, entry.help) for name, entry in COMMANDS.items() if _exists(entry)]
    width = max(len(name) for name, _ in rows)
    listing = "\n".join(f"  {name:<{width}}  {text}" for name, text in rows)
    return (
        "Usage: nima COMMAND [OPTIONS] [ARGS]...\n\n"
        "NIMA on Triton: predict how people would rate photos from 1 to 10.\n\n"
        f"Commands:\n{listing}\n\n"
        "nima COMMAND --help tells more; nima --version prints the version."
    )


def main(argv: list[str] | None = None) -> None:
    """Entry point of the ``nima`` script.

    Args:
        argv: arguments after the program's name; None takes those of the process.

    Raises:
        SystemExit: always, with the exit status of the command (2 for a wrong command line or an
            output that takes no more, 141 when nobody reads it, 128 and the number of the signal
            that ended it).
    """
    have_stderr()
    arguments = list(sys.argv[1:] if argv is None else argv)
    entry = COMMANDS.get(arguments[0] if arguments else "")
    program, kept = (f"nima {arguments[0]}", entry.kept) if entry else ("nima", "")
    with output_may_end(program), stoppable(program, kept, last=argv is None):
        _run(arguments)
    sys.exit(0)


def _run(arguments: list[str]) -> None:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "help"):
        print(_help(), flush=True)
        sys.exit(0 if arguments else 2)
    if name == "--version":
        from nima_client import __version__

        print(f"nima {__version__}")
        return
    entry = COMMANDS.get(name)
    if entry is None or not _exists(entry):
        close = difflib.get_close_matches(name, [n for n in COMMANDS if _exists(COMMANDS[n])], n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        print(f"nima: no command {name!r}.{hint} nima --help lists them.", file=sys.stderr)
        sys.exit(2)
    module, _, attribute = entry.target.partition(":")
    try:
        app = getattr(importlib.import_module(module), attribute)
        app(args=arguments[1:], prog_name=f"nima {name}")
    except ModuleNotFoundError as error:
        if (error.name or "nima_").startswith("nima_"):
            raise
        print(_missing(name, entry.extra, error.name or ""), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
