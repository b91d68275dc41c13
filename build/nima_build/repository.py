"""The model repository: where it is, what its configs say, and a rendered copy for one profile.

The tree's ``model_repository/`` is a valid repository as it stands: ``config.pbtxt`` is the profile
``default`` and ``configs/<profile>.pbtxt`` are the others (``--model-config-name``). Two things
write to it: ``nima export`` puts the network's facts behind a marker line of each config
(:func:`write_parameters`), and ``nima serve`` renders a private copy (:func:`render`) with the
instance counts and limits of the machine at hand.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from nima_build.checksums import CHECKSUMS_NAME, check_checksums
from nima_build.metadata import METADATA_NAME, ArtefactError, ModelMetadata
from nima_client._files import write_together
from nima_client.contract import (
    MAX_BATCH_SIZE,
    MODEL_NAME,
    NETWORK_MODEL,
    PREPROCESS_MODEL,
    PROFILES,
)
from nima_client.preprocess import DEFAULT_LIMITS, Limits

MODELS = (MODEL_NAME, PREPROCESS_MODEL, NETWORK_MODEL)
MARKER = "# ---- written by `nima export`: do not edit below this line ----"
ONNX_NAME = "model.onnx"
INT8_NAME = "model.int8.onnx"
CPU_PROFILES = ("cpu", "embedded")
GRAPHS = {"fp32": ONNX_NAME, "int8": INT8_NAME}
"""The graph that a CPU runs, by precision."""
ADVISED_REQUEST_SIZES = {"embedded": 4, "embedded-gpu": MAX_BATCH_SIZE}
"""Images in a request that clients are advised to send, where more than one has been measured to be
faster (docs/client.md, docs/deploy-gpu.md)."""
WAITING_AN_INSTANCE = 3
"""Decoded images that may wait for each instance of the network: with fewer, decoders wait in vain
(benchmarks/NOTES.md, entry 17)."""
FEWEST_DECODERS = 3
"""Triton hands the queue's next request on when an instance reports that it is done, and a report
that comes too early for its own queue is lost until the next one or half a second has passed. With
an instance to spare the next one comes soon (benchmarks/NOTES.md, entry 24)."""
_PIXELS_DIMS = re.compile(r"\[ \d+, \d+, 3 \]")


def default_repository() -> Path:
    """The repository at ``$NIMA_MODEL_REPOSITORY``, of the source tree, or inside the wheel.

    Raises:
        ArtefactError: none is there.
    """
    if chosen := os.environ.get("NIMA_MODEL_REPOSITORY"):
        return Path(chosen)
    here = Path(__file__).resolve().parent
    for candidate in (here.parents[1] / "model_repository", here / "_model_repository"):
        if (candidate / MODEL_NAME / "config.pbtxt").is_file():
            return candidate
    raise ArtefactError("no model_repository beside this installation: pass --model-repository")


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
        return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    except FileNotFoundError:
        raise ArtefactError(f"no model config at {path}") from None
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
    # JSON's string escapes are also those of protobuf's text format.
    return "".join(
        f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value)} }} }}\n"
        for key, value in parameters.items()
    )


def _facts(model: str, metadata: ModelMetadata) -> dict[str, str]:
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
            text = _PIXELS_DIMS.sub(f"[ {size}, {size}, 3 ]", path.read_text())
            head, found, _ = text.partition(MARKER)
            if found:
                text = f"{head}{MARKER}\n{_parameter_block(_facts(model, metadata))}"
            contents[path] = text.encode()
    return contents


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
        ArtefactError: it is not there, or of another checkpoint.
        ValueError: there is no such precision.
    """
    if precision not in GRAPHS:
        raise ValueError(f"no precision {precision!r}; there are {', '.join(GRAPHS)}")
    path = repository / NETWORK_MODEL / "1" / GRAPHS[precision]
    if not path.is_file():
        with_int8 = " CHECKPOINT --int8 PHOTOS" if precision == "int8" else ""
        raise ArtefactError(f"no {path}: run `nima export{with_int8}` first")
    if precision == "int8":
        from nima_build.onnx_session import graph_checkpoint

        if graph_checkpoint(path) != load_metadata(repository).checkpoint_sha256:
            raise ArtefactError(
                f"{path} is of another checkpoint than {ONNX_NAME}, or damaged: run "
                "`nima export CHECKPOINT --int8 PHOTOS`"
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


@dataclass(frozen=True)
class RenderOptions:
    """What a rendered repository may change.

    Attributes:
        profile: one of :data:`nima_client.contract.PROFILES`.
        instances: instance count by model; models not named keep their config's count.
        limits: largest image in bytes and pixels.
        precision: key of :data:`GRAPHS`; what a CPU runs.
        gate: file of :mod:`nima_client._gate`, which holds the decoder back while the network has
            :data:`WAITING_AN_INSTANCE` images waiting (a config's own ``gate_limit``, in all,
            counts instead); None lets it run ahead.
    """

    profile: str = "embedded"
    instances: Mapping[str, int] = field(default_factory=dict)
    limits: Limits = DEFAULT_LIMITS
    precision: str = "fp32"
    gate: Path | None = None

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise ValueError(f"no profile {self.profile!r}; there are {', '.join(PROFILES)}")
        if any(count < 1 for count in self.instances.values()):
            raise ValueError("an instance count must be at least 1")
        if self.limits.max_bytes < 1 or self.limits.max_pixels < 1:
            raise ValueError("image limits must be positive")
        if self.precision not in GRAPHS:
            raise ValueError(f"no precision {self.precision!r}; there are {', '.join(GRAPHS)}")


def cpu_instances(images: int) -> dict[str, int]:
    """Instances by model with which a CPU works on so many images at once, a core each."""
    return {PREPROCESS_MODEL: max(FEWEST_DECODERS, images + 1), NETWORK_MODEL: images}


def python_instances(repository: Path) -> int:
    """Instances that Triton's Python backend runs of a rendered repository, on one device."""
    count = 0
    for model in MODELS:
        config = read_config(repository / model / "config.pbtxt")
        if config.backend == "python":
            versions = len(config.version_policy.specific.versions) or 1
            count += versions * sum(group.count or 1 for group in config.instance_group)
    return count


def _instances(source: Path, options: RenderOptions) -> int:
    """Requests that it works on at once: on a CPU the network's, on a GPU the decoder's."""
    model = NETWORK_MODEL if options.profile in CPU_PROFILES else PREPROCESS_MODEL
    if model in options.instances:
        return options.instances[model]
    config = read_config(config_path(source, model, options.profile))
    return int(config.instance_group[0].count)


def render(source: Path, destination: Path, options: RenderOptions) -> ModelMetadata:
    """Write a repository for one profile: its configs as ``config.pbtxt``, files beside them.

    Args:
        source: a repository with every profile.
        destination: a folder that may be written; models already there are replaced.
        options: profile, instance counts and limits.

    Returns:
        The metadata of the network that the rendered repository serves.

    Raises:
        ArtefactError: the source lacks the network, holds a broken config, or an artefact is not
            what its manifest (``SHA256SUMS``) names.
    """
    from google.protobuf import text_format

    metadata = load_metadata(source)
    check_graph(source, options.precision)
    if (source / CHECKSUMS_NAME).is_file():
        check_checksums(source)
    for model in MODELS:
        config = read_config(config_path(source, model, options.profile))
        for key, value in _facts(model, metadata).items():
            config.parameters[key].string_value = value
        if options.profile in CPU_PROFILES:
            set_precision(config, options.precision)
        for step in config.ensemble_scheduling.step:
            # Pinned: with "the latest", an answer would name one version and come from another
            # while a rollout has two of them loaded.
            step.model_version = 1
        if model == PREPROCESS_MODEL:
            config.parameters["max_bytes"].string_value = str(options.limits.max_bytes)
            config.parameters["max_pixels"].string_value = str(options.limits.max_pixels)
        if model == MODEL_NAME and options.profile in ADVISED_REQUEST_SIZES:
            advised = str(ADVISED_REQUEST_SIZES[options.profile])
            config.parameters["request_size"].string_value = advised
            config.parameters["instances"].string_value = str(_instances(source, options))
        if model in options.instances and len(config.instance_group) > 0:
            config.instance_group[0].count = options.instances[model]
        if options.gate is not None and model != MODEL_NAME:
            config.parameters["gate"].string_value = str(options.gate)
            limit = config.parameters["gate_limit"].string_value
            limit = limit or str(WAITING_AN_INSTANCE * options.instances.get(NETWORK_MODEL, 1))
            config.parameters["gate_limit"].string_value = limit
        target = destination / model
        shutil.rmtree(target, ignore_errors=True)
        (target / "1").mkdir(parents=True)
        (target / "config.pbtxt").write_text(text_format.MessageToString(config))
        if (source / model / "1").is_dir():
            copy_version(source / model / "1", target / "1")
    return metadata


def copy_version(version: Path, target: Path) -> None:
    """Copy the files of a model's version into a folder that is there.

    Contents alone: of a folder that nobody may write, no copy could be removed again.

    Raises:
        OSError: a file cannot be read or written.
    """
    for path in sorted(version.iterdir()):
        if path.is_file() and path.suffix != ".pyc":
            shutil.copyfile(path, target / path.name)
