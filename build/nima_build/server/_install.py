"""Finds the wheel's tritonserver and lays out the folder its Python backend wants."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import sysconfig
from pathlib import Path


class ServerError(RuntimeError):
    """The server cannot be started, or did not answer; the message says what to do."""


class ServerCrashed(ServerError):
    """tritonserver was ended by a signal while it started."""


class ServerLost(ServerError):
    """What the server runs over is gone: another launch cannot help, a new start does."""


def wheel_root() -> Path:
    """``pytriton/tritonserver`` of the installed wheel, found without importing it.

    Raises:
        ServerError: the wheel is not installed.
    """
    spec = importlib.util.find_spec("pytriton")
    locations = list(spec.submodule_search_locations or ()) if spec else []
    for location in locations:
        root = Path(location) / "tritonserver"
        if (root / "bin" / "tritonserver").is_file():
            return root
    raise ServerError(
        "the embedded tritonserver (Linux x86-64) is not installed: "
        "pip install 'nima-triton[serve]'"
    )


def check_numpy() -> None:
    """Refuse numpy 2: the wheel's stub aborts on BYTES tensors with it.

    Raises:
        ServerError: numpy is too new.
    """
    import numpy

    if int(numpy.__version__.split(".")[0]) >= 2:
        raise ServerError(
            f"the embedded tritonserver needs numpy < 2, this environment has {numpy.__version__}: "
            "pip install 'nima-triton[serve]' in an environment of its own"
        )


def _soname() -> str:
    return f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"


def libpython_directory() -> Path | None:
    """Folder to add to ``LD_LIBRARY_PATH`` so that the stub finds this interpreter's library.

    Returns:
        None where the loader finds the library by itself.

    Raises:
        ServerError: there is none; a Python may be built without a shared library.
    """
    folder = Path(str(sysconfig.get_config_var("LIBDIR")))
    if (folder / _soname()).is_file():
        return folder
    try:
        ctypes.CDLL(_soname())
    except OSError:
        raise ServerError(
            f"Triton's Python backend needs {_soname()}, which this machine lacks. "
            f"Debian and Ubuntu: apt-get install {_libpython_package()}; otherwise use a Python "
            "built with --enable-shared"
        ) from None
    return None


def _libpython_package() -> str:
    return f"libpython{sys.version_info.major}.{sys.version_info.minor}"


def missing_packages() -> list[str]:
    """Debian packages that the server needs and this machine lacks; the Makefile asks."""
    try:
        libpython_directory()
    except ServerError:
        return [_libpython_package()]
    return []


def lay_out_backends(folder: Path) -> Path:
    """Link the Python backend and the stub of this interpreter into one folder.

    Returns:
        The folder for ``--backend-directory``.

    Raises:
        ServerError: the wheel has no stub for this Python version.
    """
    root = wheel_root()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        known = sorted(p.name for p in (root / "python_backend_stubs").iterdir())
        raise ServerError(
            f"the wheel has no stub for Python {version}; it has them for {', '.join(known)}"
        )
    backend = folder / "python"
    backend.mkdir(parents=True)
    for path in (root / "backends" / "python").iterdir():
        if path.is_file():
            (backend / path.name).symlink_to(path)
    # The stub finds its libraries relative to itself, and a wheel may have lost its mode bits.
    if not os.access(stub, os.X_OK):
        stub.chmod(stub.stat().st_mode | 0o111)
    (backend / stub.name).symlink_to(stub)
    return folder


def tritonserver_binary() -> Path:
    """The tritonserver executable of the wheel."""
    binary = wheel_root() / "bin" / "tritonserver"
    if not os.access(binary, os.X_OK):
        binary.chmod(binary.stat().st_mode | 0o111)
    return binary
