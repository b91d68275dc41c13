"""``python -m nima_build.cpu_profile REPOSITORY COUNT PRECISION MAX_BYTES MAX_PIXELS``.

Writes the configs of the profile ``cpu``. Run by the docker entrypoint, since a config in the tree
cannot know the machine nor the choice. What is empty gets its default, not what an earlier run
chose: the repository may be a volume that outlives the container. An empty count is an image a
core.
"""

from __future__ import annotations

import sys
from pathlib import Path

from nima_build.cores import available_cores
from nima_build.metadata import ArtefactError
from nima_build.rendering import cpu_instances
from nima_build.repository import (
    MODELS,
    check_graph,
    config_text,
    load_metadata,
    read_config,
    set_precision,
)
from nima_client._files import write_together
from nima_client._os_errors import in_words
from nima_client.contract import MODEL_NAME, PREPROCESS_MODEL
from nima_client.preprocess import DEFAULT_LIMITS, Limits


def set_cpu_profile(
    repository: Path, count: int, precision: str = "fp32", limits: Limits = DEFAULT_LIMITS
) -> None:
    """Write instance count, precision and limits into the ``cpu`` configs, all or none of them.

    Args:
        repository: folder of the models.
        count: images to work on at once; :func:`~nima_build.rendering.cpu_instances` of them.
        precision: key of :data:`~nima_build.repository.GRAPHS`.
        limits: largest image in bytes and pixels.

    Raises:
        ValueError: the count or a limit is not positive, or there is no such precision.
        ArtefactError: a config is missing or broken, or the graph or ``model.json`` is not there.
        OSError: the repository cannot be written.
    """
    if count < 1:
        raise ValueError("the number of instances must be at least 1")
    if limits.max_bytes < 1 or limits.max_pixels < 1:
        raise ValueError("image limits must be positive")
    check_graph(repository, precision)
    metadata = load_metadata(repository)
    contents = {}
    for model in MODELS:
        path = repository / model / "configs" / "cpu.pbtxt"
        # The ensemble is every profile's: what it says of the precision goes into one for this.
        config = read_config(path if model != MODEL_NAME else repository / model / "config.pbtxt")
        set_precision(config, precision)
        if model != MODEL_NAME:
            config.instance_group[0].count = cpu_instances(count)[model]
        if model == PREPROCESS_MODEL:
            config.parameters["max_bytes"].string_value = str(limits.max_bytes)
            config.parameters["max_pixels"].string_value = str(limits.max_pixels)
        contents[path] = config_text(config, metadata).encode()
    write_together({p: data for p, data in contents.items() if _differs(p, data)})


def _differs(path: Path, data: bytes) -> bool:
    return not path.is_file() or path.read_bytes() != data


def _whole(variable: str, text: str, default: int) -> int:
    try:
        return int(text) if text else default
    except ValueError:
        raise ValueError(f"{variable} is a whole number, not {text!r}") from None


def main(arguments: list[str]) -> int:
    """Exit status 0, or 1 with the reason on standard error."""
    try:
        repository, count, precision, max_bytes, max_pixels = arguments
        limits = Limits(
            _whole("NIMA_MAX_BYTES", max_bytes, DEFAULT_LIMITS.max_bytes),
            _whole("NIMA_MAX_PIXELS", max_pixels, DEFAULT_LIMITS.max_pixels),
        )
        images = _whole("NIMA_INSTANCES", count, available_cores())
        set_cpu_profile(Path(repository), images, precision or "fp32", limits)
    except (ArtefactError, ValueError, OSError) as error:
        print(f"nima: cannot set up the profile cpu: {in_words(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
