"""Checks of `nima doctor` that need no server: this installation, and the files to be served."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import nima_client
from nima_build.checksums import check_checksums
from nima_build.doctor._finding import Finding, one_line
from nima_build.metadata import ArtefactError
from nima_build.repository import load_metadata

# Without these, pixels come from Pillow: the same scores, slower (docs/performance.md).
_FAST = ("simplejpeg", "cykooz.resizer")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def installation() -> Finding:
    """What this machine would score and serve with."""
    from PIL import features

    names = ("tritonclient", "pillow", *_FAST)
    found = {name: _version(name) for name in names}
    detail = f"nima-triton {nima_client.__version__}, " + ", ".join(
        f"{name} {version}" for name, version in found.items() if version
    )
    # Not `check`, which warns of a name that an older Pillow does not know.
    if "avif" not in features.get_supported_modules():
        return Finding(
            "installation", "warning", f"{detail}; no AVIF",
            "AVIF files are refused as UNSUPPORTED: install a wheel of Pillow 11.3 or newer",
        )  # fmt: skip
    if missing := [name for name in _FAST if not found[name]]:
        return Finding(
            "installation", "warning", f"{detail}; without {' and '.join(missing)}",
            "a server on this machine decodes slower: pip install 'nima-triton[serve]'",
        )  # fmt: skip
    return Finding("installation", "ok", detail)


def artefacts(repository: Path) -> Finding:
    """The files of a repository against its manifest."""
    try:
        count = check_checksums(repository)
        metadata = load_metadata(repository)
    except ArtefactError as error:
        return Finding("artefacts", "failure", one_line(error), "run `nima export`")
    except OSError as error:
        return Finding(
            "artefacts", "failure", one_line(error),
            "whoever serves must be able to read the files of the repository",
        )  # fmt: skip
    digest = metadata.checkpoint_sha256[:12]
    return Finding(
        "artefacts", "ok", f"{count} files match SHA256SUMS; {metadata.name}, checkpoint {digest}"
    )
