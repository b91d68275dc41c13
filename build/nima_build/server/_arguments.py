"""tritonserver's command line and environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from nima_build.repository import MODELS
from nima_build.server._install import libpython_directory, tritonserver_binary
from nima_build.server._options import ServerOptions
from nima_build.server._ports import Ports
from nima_build.server._security import restriction_arguments

# glibc returns large blocks to the kernel as soon as they are free, and a camera photo of a few
# megabytes then costs a millisecond of page faults in every process it passes (benchmarks/NOTES.md,
# entry 9). So much stays with each process instead; 32 MiB is the most that glibc takes.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}

_POOL_BYTES = 512 << 20

NOBODYS_FOLDER = "/"
"""The current folder of what is started: Python imports from there before anything else."""


def command(
    options: ServerOptions,
    folder: Path,
    ports: Ports,
    admin_token: str,
    shm_prefix: str,
    gpus: int = 0,
) -> list[str]:
    """The whole command line.

    Args:
        options: how to run it.
        folder: holds ``models`` and ``backends``.
        ports: of its three endpoints.
        admin_token: opens the restricted APIs.
        shm_prefix: begins the name of every shared-memory file of this server.
        gpus: how many there are, where one is used.
    """
    host = options.host
    return [
        str(tritonserver_binary()),
        f"--model-repository={folder / 'models'}",
        f"--backend-directory={folder / 'backends'}",
        "--disable-auto-complete-config",
        f"--grpc-address={host}",
        f"--grpc-port={ports.grpc}",
        *(
            [f"--http-address={host}", f"--http-port={ports.http}"]
            if options.serves_http
            else ["--allow-http=false"]
        ),
        f"--metrics-address={host}",
        f"--metrics-port={ports.metrics}",
        # Without a GPU tritonserver looks for one, and logs an error.
        *(["--allow-gpu-metrics=false"] if options.device == "cpu" else pools(gpus)),
        "--log-format=ISO8601",
        f"--exit-timeout-secs={max(1, round(options.stop_timeout))}",
        "--model-control-mode=explicit",
        *(f"--load-model={model}" for model in MODELS),
        *restriction_arguments(admin_token),
        *(options.tls.arguments() if options.tls else []),
        # Names this server's shared memory, so that it alone is removed after a crash.
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        *options.extra_arguments,
    ]


def pools(gpus: int) -> list[str]:
    """Arguments for the memory of each GPU in which pixels pass between the steps.

    What finds it full is refused (``gpu_model.py`` of ``nima_network``). Triton's default of 64 MiB
    holds 13 requests of 32 images.
    """
    return [f"--cuda-memory-pool-byte-size={gpu}:{_POOL_BYTES}" for gpu in range(gpus)]


def environment() -> dict[str, str]:
    """The environment of this process, with its interpreter where the Python backend looks.

    Raises:
        ServerError: there is no shared library of this interpreter.
    """
    values = {**_MALLOC, **os.environ}
    # The stub finds its interpreter, and so this environment's packages, on PATH.
    programs = os.environ.get("PATH", os.defpath)
    values["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{programs}"
    values.pop("PYTHONHOME", None)
    if path := values.get("PYTHONPATH"):
        # It is read in another folder than this process's.
        folders = (os.path.abspath(folder) for folder in path.split(os.pathsep) if folder)
        values["PYTHONPATH"] = os.pathsep.join(folders)
    if library := libpython_directory():
        paths = [str(library), values.get("LD_LIBRARY_PATH", "")]
        values["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, paths))
    return values
