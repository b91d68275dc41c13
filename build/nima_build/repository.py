"""The model repository: where it is, and what its configs say.

The tree's ``model_repository/`` is a valid repository as it stands: ``config.pbtxt`` is the profile
``default`` and ``configs/<profile>.pbtxt`` are the others (``--model-config-name``). Two things
write to it: ``nima export`` puts the network's facts behind a marker line of each config
(:func:`write_parameters`), and ``nima serve`` renders a private copy
(:mod:`nima_build.rendering`) with the instance counts and limits of the machine at hand.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from nima_build.metadata import METADATA_NAME, ArtefactError, ModelMetadata
from nima_client._files import write_together
from nima_client.contract import (
    MODEL_NAME,
    NETWORK_MODEL,
    PREPROCESS_MODEL,
)

MODELS = (MODEL_NAME, PREPROCESS_MODEL, NETWORK_MODEL)
MARKER = "# ---- written by `nima export`: do not edit below this line ----"
ONNX_NAME = "model.onnx"
INT8_NAME = "model.int8.onnx"
CPU_PROFILES = ("cpu", "embedded")
GRAPHS = {"fp32": ONNX_NAME, "int8": INT8_NAME}
"""The graph that a CPU runs, by precision."""
_PIXELS_DIMS = re.compile(r"\[ ?\d+, \d+, 3 ?\]")


def default_repository() -> Path:
    """The repository at ``$NIMA_MODEL_REPOSITORY``, of the source tree, or inside the wheel.

    Raises:
        ArtefactError: none is there.
    """
    if chosen := os.environ.get("NIMA_MODEL_REPOSITORY"):
        if not is_repository(Path(chosen)):
            raise ArtefactError(
                f"NIMA_MODEL_REPOSITORY={chosen} is no model repository: "
                f"it has no {MODEL_NAME}/config.pbtxt"
            )
        return Path(chosen)
    here = Path(__file__).resolve().parent
    for candidate in (here.parents[1] / "model_repository", here / "_model_repository"):
        if is_repository(candidate):
            return candidate
    raise ArtefactError("no model_repository beside this installation: pass --model-repository")


def is_repository(folder: Path) -> bool:
    """Whether a folder has the configs of a model repository."""
    return (folder / MODEL_NAME / "config.pbtxt").is_file()


def config_path(repository: Path, model: str, profile: str) -> Path:
    """The config a profile uses for a model; ``config.pbtxt`` where it has none of its own."""
    own = repository / model / "configs" / f"{profile}.pbtxt"
    return own if own.is_file() else repository / model / "config.pbtxt"


def read_config(path: Path) -> Any:
    """Parse a config against Triton's model-config schema.

    Returns:
        ``inference.ModelConfig`` protobuf message.

    Raises:
        ArtefactError: the file is missing or violates the schema; the message names the line.
    """
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    try:
        text = path.read_text(encoding="utf-8")
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except FileNotFoundError:
        raise ArtefactError(f"no model config at {path}") from None
    except UnicodeDecodeError as error:
        raise ArtefactError(f"{path} is not UTF-8: {error}") from None
    except text_format.ParseError as error:
        raise ArtefactError(f"{path}: {error}") from None


def load_module(path: Path) -> ModuleType:
    """A Python file of a model, which is on no path outside Triton, as a module.

    The files beside it can be imported by it, as under Triton.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def load_metadata(repository: Path) -> ModelMetadata:
    """The facts of the network in a repository (``nima_network/1/model.json``)."""
    return ModelMetadata.load(repository / NETWORK_MODEL / "1" / METADATA_NAME)


def _parameter_block(parameters: Mapping[str, str]) -> str:
    return "".join(
        f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}\n"
        for key, value in parameters.items()
    )


def _quoted(text: str) -> str:
    # JSON's string escapes are also those of protobuf's text format, but for its surrogate pairs.
    parts = re.split(r"([\U00010000-\U0010ffff])", text)
    escaped = (
        f"\\U{ord(part):08x}" if place % 2 else json.dumps(part)[1:-1]
        for place, part in enumerate(parts)
    )
    return f'"{"".join(escaped)}"'


def facts(model: str, metadata: ModelMetadata) -> dict[str, str]:
    """What the config of one of :data:`MODELS` says of a network, as parameters."""
    if model == MODEL_NAME:
        return metadata.served().to_parameters()
    if model == PREPROCESS_MODEL:
        return {"preprocessing": json.dumps(metadata.spec.to_dict(), sort_keys=True)}
    return {}


def _configs(repository: Path, model: str) -> Iterator[Path]:
    yield repository / model / "config.pbtxt"
    yield from sorted((repository / model / "configs").glob("*.pbtxt"))


def config_contents(repository: Path, metadata: ModelMetadata) -> dict[Path, bytes]:
    """Every config as it must be for a network: its facts behind the marker, its image size."""
    size = metadata.spec.crop_size
    contents = {}
    for model in MODELS:
        for path in _configs(repository, model):
            if not path.is_file():
                continue
            given = path.read_text(encoding="utf-8")
            text = _PIXELS_DIMS.sub(f"[ {size}, {size}, 3 ]", given)
            head, found, _ = text.partition(MARKER)
            if found:
                text = f"{head}{MARKER}\n{_parameter_block(facts(model, metadata))}"
            contents[path] = text.encode()
    return contents


def config_text(config: Any, metadata: ModelMetadata) -> str:
    """A changed config of one of :data:`MODELS` as a file in which the next export finds its facts.

    Args:
        config: ``inference.ModelConfig``; its facts become those of ``metadata``.
        metadata: of the network that lies in the repository.
    """
    from google.protobuf import text_format

    known = facts(config.name, metadata)
    for key in known.keys() & set(config.parameters):
        del config.parameters[key]
    text: str = text_format.MessageToString(config, use_short_repeated_primitives=True)
    return f"{text}\n{MARKER}\n{_parameter_block(known)}" if known else text


def write_parameters(repository: Path, metadata: ModelMetadata) -> list[Path]:
    """Write a network's facts and image size into the configs; idempotent.

    Returns:
        The configs that carry facts.
    """
    contents = config_contents(repository, metadata)
    write_together({p: data for p, data in contents.items() if p.read_bytes() != data})
    return [path for path, data in contents.items() if MARKER.encode() in data]


def check_graph(repository: Path, precision: str) -> Path:
    """The graph that a repository holds for a precision, a key of :data:`GRAPHS`.

    Raises:
        ArtefactError: it is not there, or of another checkpoint or preprocessing.
        ValueError: there is no such precision.
    """
    if precision not in GRAPHS:
        raise ValueError(f"no precision {precision!r}; there are {', '.join(GRAPHS)}")
    path = repository / NETWORK_MODEL / "1" / GRAPHS[precision]
    if not path.is_file():
        with_int8 = " CHECKPOINT --int8 PHOTOS" if precision == "int8" else ""
        raise ArtefactError(f"no {path}: run `nima export{with_int8}` first")
    if precision == "int8":
        from nima_build.onnx_session import is_of_model

        if not is_of_model(path, load_metadata(repository)):
            raise ArtefactError(
                f"{path} is of another checkpoint or preprocessing than {ONNX_NAME}, or damaged: "
                "run `nima export CHECKPOINT --int8 PHOTOS`"
            )
    return path


def set_precision(config: Any, precision: str) -> None:
    """Write into the config of one of :data:`MODELS`, of a CPU profile, which graph runs.

    The ensemble's tells it to clients (:class:`~nima_client.contract.ServedModel`). Those of the
    GPU profiles are not asked: an engine has the precision it was built with.
    """
    if config.name == MODEL_NAME:
        config.parameters["precision"].string_value = precision
    elif config.name == NETWORK_MODEL and config.backend == "python":
        config.parameters["graph"].string_value = GRAPHS[precision]
    elif config.name == NETWORK_MODEL and config.backend == "onnxruntime":
        config.default_model_filename = GRAPHS[precision]


def copy_version(version: Path, target: Path) -> None:
    """Copy the files of a model's version into a folder that is there.

    Contents alone: of a folder that nobody may write, no copy could be removed again.

    Raises:
        OSError: a file cannot be read or written.
    """
    for path in sorted(version.iterdir()):
        if path.is_file() and path.suffix != ".pyc":
            shutil.copyfile(path, target / path.name)
