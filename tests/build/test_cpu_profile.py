"""The profile ``cpu`` as the entrypoint sets it up: the cores it counts, and what an earlier run
left in a volume.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nima_build.cores import available_cores
from nima_build.repository import config_path, read_config

ENTRYPOINT = Path(__file__).parents[2] / "docker" / "entrypoint.sh"


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "400000 100000\n"}, 4),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
        ("0::/\n", {"cpu.max": "nonsense\n"}, 64),
        ("0::/\n", {}, 64),
        # A quota on the service, and a tighter one on the slice above it.
        ("0::/a/b\n", {"a/b/cpu.max": "800000 100000\n", "a/cpu.max": "200000 100000\n"}, 2),
        # The host's name for the group; the container has it at the root.
        ("0::/docker/12ab\n", {"cpu.max": "150000 100000\n"}, 2),
        (
            "5:memory:/a\n4:cpu,cpuacct:/a\n0::/\n",
            {"cpu/a/cpu.cfs_quota_us": "50000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
            1,
        ),
        (
            "4:cpu:/\n",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            64,
        ),
    ],
)
def test_a_cpu_quota_counts_as_well_as_the_affinity(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    membership: str,
    files: dict[str, str],
    cores: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "membership").write_text(membership)
    assert available_cores(tmp_path / "cgroup", tmp_path / "membership") == cores
    assert available_cores(tmp_path / "cgroup", tmp_path / "absent") == 64


def test_what_an_earlier_run_chose_does_not_stay(repository: Path, tmp_path: Path) -> None:
    """With a command that does nothing in the place of tritonserver."""
    models = Path(shutil.copytree(repository, tmp_path / "models"))
    tritonserver = tmp_path / "bin" / "tritonserver"
    tritonserver.parent.mkdir()
    tritonserver.write_text("#!/bin/sh\n")
    tritonserver.chmod(0o755)
    path = [str(tritonserver.parent), str(Path(sys.executable).parent), os.environ["PATH"]]

    def serve(**environment: str) -> tuple[str, str, int]:
        common = {"NIMA_MODEL_REPOSITORY": str(models), "NIMA_PROFILE": "cpu"}
        clean = {key: value for key, value in os.environ.items() if not key.startswith("NIMA_")}
        subprocess.run(
            ["bash", ENTRYPOINT, "serve"],
            env={**clean, "PATH": os.pathsep.join(path), **common, **environment},
            timeout=60, check=True,
        )  # fmt: skip
        config = read_config(config_path(models, "nima_preprocess", "cpu"))
        limits = (config.parameters[key].string_value for key in ("max_bytes", "max_pixels"))
        return (*limits, config.instance_group[0].count)

    chosen = serve(NIMA_MAX_BYTES="1000", NIMA_MAX_PIXELS="2000", NIMA_INSTANCES="7")
    assert chosen == ("1000", "2000", 8)
    assert serve() == ("67108864", "100000000", max(3, available_cores() + 1))
