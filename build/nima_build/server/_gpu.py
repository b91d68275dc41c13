"""What a server on a GPU needs, asked for before Triton says it in its own words."""

from __future__ import annotations

from pathlib import Path

from nima_build.gpu import Gpu, is_installed, visible_gpus
from nima_build.repository import load_metadata
from nima_build.server._install import ServerError
from nima_client._package import PACKAGE_NAME, PackageError, check_package
from nima_client.contract import NETWORK_MODEL

GPU_MODEL = "gpu_model.py"
"""The file of ``nima_network`` that runs the package; what its config names then."""
_PACKAGES = ("torch", "nvidia.nvimgcodec", "cvcuda", "cuda.bindings")


def check_gpu(repository: Path) -> dict[str, Gpu]:
    """Refuse a start that cannot succeed.

    Args:
        repository: whose network is to be served.

    Returns:
        The GPUs there are, by their UUIDs.

    Raises:
        ServerError: no GPU, a package is missing, or no engine that fits; says what to do.
    """
    gpus = visible_gpus()
    if not gpus:
        raise ServerError("there is no NVIDIA GPU here (nvidia-smi finds none): leave out --device")
    if missing := [name for name in _PACKAGES if not is_installed(name)]:
        raise ServerError(
            f"a server on a GPU needs {', '.join(missing)}: pip install 'nima-triton[serve-gpu]'"
        )
    metadata = load_metadata(repository)
    try:
        # Its PyTorch is asked by the model itself, in a process that has loaded one.
        check_package(
            repository / NETWORK_MODEL / "1" / PACKAGE_NAME,
            checkpoint_sha256=metadata.checkpoint_sha256,
            preprocessing_id=metadata.spec.id,
            compute_capability=next(iter(gpus.values())).compute_capability,
        )
    except PackageError as error:
        raise ServerError(str(error)) from None
    return gpus
