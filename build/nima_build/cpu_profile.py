"""``python -m nima_build.cpu_profile REPOSITORY COUNT PRECISION [MAX_BYTES [MAX_PIXELS]]``.

Writes the configs of the profile ``cpu``. Run by the docker entrypoint, since a config in the tree
cannot know the machine nor the choice. An empty limit leaves the config's.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from nima_build.metadata import ArtefactError
from nima_build.repository import MODELS, check_graph, cpu_instances, read_config, set_precision
from nima_client._files import write_together
from nima_client.contract import MODEL_NAME, PREPROCESS_MODEL

_LIMITS = ("max_bytes", "max_pixels")


def set_cpu_profile(
    repository: Path, count: int, precision: str = "fp32", limits: Mapping[str, int] | None = None
) -> None:
    """Write instance count, precision and limits into the ``cpu`` configs, all or none of them.

    Args:
        repository: folder of the models.
        count: images to work on at once; :func:`~nima_build.repository.cpu_instances` of them.
        precision: key of :data:`~nima_build.repository.GRAPHS`.
        limits: ``max_bytes`` and ``max_pixels`` of an image; what is not named stays.

    Raises:
        ValueError: the count or a limit is not positive, or there is no such precision.
        ArtefactError: a config is missing or broken, or the graph is not there.
        OSError: the repository cannot be written.
    """
    from google.protobuf import text_format

    if count < 1:
        raise ValueError("the number of instances must be at least 1")
    if any(limit < 1 for limit in (limits or {}).values()):
        raise ValueError("image limits must be positive")
    check_graph(repository, precision)
    contents = {}
    for model in MODELS:
        path = repository / model / "configs" / "cpu.pbtxt"
        # The ensemble is every profile's: what it says of the precision goes into one for this.
        config = read_config(path if model != MODEL_NAME else repository / model / "config.pbtxt")
        set_precision(config, precision)
        if model != MODEL_NAME:
            config.instance_group[0].count = cpu_instances(count)[model]
        if model == PREPROCESS_MODEL:
            for key, limit in (limits or {}).items():
                config.parameters[key].string_value = str(limit)
        contents[path] = text_format.MessageToString(config).encode()
    write_together({p: data for p, data in contents.items() if _differs(p, data)})


def _differs(path: Path, data: bytes) -> bool:
    return not path.is_file() or path.read_bytes() != data


def main(arguments: list[str]) -> int:
    """Exit status 0, or 1 with the reason on standard error."""
    try:
        repository, count, precision, *limits = arguments
        named = dict(zip(_LIMITS, limits, strict=False))
        given = {key: int(value) for key, value in named.items() if value}
        set_cpu_profile(Path(repository), int(count), precision, given)
    except (ArtefactError, ValueError, OSError) as error:
        print(f"nima: cannot set up the profile cpu: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
