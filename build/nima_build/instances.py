"""``python -m nima_build.instances REPOSITORY COUNT``: instances of the profile ``cpu``.

Run by the docker entrypoint, since a config in the tree cannot know the cores of the machine.
"""

from __future__ import annotations

import sys
from pathlib import Path

from nima_build.metadata import ArtefactError
from nima_build.repository import read_config
from nima_client._files import write_atomic
from nima_client.contract import NETWORK_MODEL, PREPROCESS_MODEL


def set_instances(repository: Path, count: int) -> None:
    """Write the instance count into the ``cpu`` configs of both steps, where it differs.

    Raises:
        ValueError: the count is not positive.
        ArtefactError: a config is missing or broken.
        OSError: the repository cannot be written.
    """
    from google.protobuf import text_format

    if count < 1:
        raise ValueError("the number of instances must be at least 1")
    for model in (PREPROCESS_MODEL, NETWORK_MODEL):
        path = repository / model / "configs" / "cpu.pbtxt"
        config = read_config(path)
        if config.instance_group[0].count != count:
            config.instance_group[0].count = count
            write_atomic(path, text_format.MessageToString(config).encode())


def main(arguments: list[str]) -> int:
    """Exit status 0, or 1 with the reason on standard error."""
    try:
        repository, count = arguments
        set_instances(Path(repository), int(count))
    except (ArtefactError, ValueError, OSError) as error:
        print(f"nima: cannot set the instances: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
