"""A copy of the model repository for one profile, with the instances and limits of this machine."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nima_build.checksums import CHECKSUMS_NAME, check_checksums
from nima_build.metadata import ModelMetadata
from nima_build.repository import (
    CPU_PROFILES,
    GRAPHS,
    MODELS,
    check_graph,
    config_path,
    copy_version,
    facts,
    load_metadata,
    read_config,
    set_precision,
)
from nima_client.contract import (
    MAX_BATCH_SIZE,
    MODEL_NAME,
    NETWORK_MODEL,
    PREPROCESS_MODEL,
    PROFILES,
)
from nima_client.preprocess import DEFAULT_LIMITS, Limits

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
    """Requests that it works on at once: on a CPU the network's, on a GPU the decoder's.

    There no more than a full request makes of those whose pixels stay on the GPU: clients split
    their calls by this, and through the host it scores 0.6 as many (benchmarks/NOTES.md, entry 33).
    """
    on_cpu = options.profile in CPU_PROFILES
    model = NETWORK_MODEL if on_cpu else PREPROCESS_MODEL
    config = read_config(config_path(source, model, options.profile))
    count = options.instances.get(model, int(config.instance_group[0].count))
    if on_cpu:
        return count
    most = MAX_BATCH_SIZE // int(config.parameters["host_below"].string_value)
    return max(1, min(count, most))


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
        for key, value in facts(model, metadata).items():
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
