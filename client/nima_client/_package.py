"""What a network compiled by PyTorch was built from and for: ``model.pt2.json``.

Readable without torch, by the command that builds it and by the Triton model that runs it. A
package runs with the PyTorch and on the GPU architecture it was built with; the manifest says so in
words before PyTorch fails in its own.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nima_client._files import sha256_file
from nima_client._os_errors import reason

PACKAGE_NAME = "model.pt2"
REBUILD = "nima build --target inductor"
FORMAT = 1
"""Of what goes in and comes out: uint8 ``[B, S, S, 3]`` to FP32 ``[B, 12]``, the distribution, the
mean and the standard deviation side by side."""


class PackageError(ValueError):
    """There is no package, or it does not fit; the message has the reason and the command."""


@dataclass(frozen=True)
class PackageManifest:
    """Identity of a package.

    Attributes:
        torch_version: of the PyTorch that compiled it, e.g. ``2.11.0+cu130``.
        device: ``cuda`` or ``cpu``.
        compute_capability: of the GPU it was built on, e.g. ``9.0``; ``cpu`` without one.
        checkpoint_sha256: SHA-256 of the checkpoint's weights.
        preprocessing_id: of the specification whose normalisation is compiled in.
        image_size: side S of the images, in pixels.
        precision: ``fp16`` or ``fp32``, of the network's body.
        max_batch: largest batch; the smallest is 1.
        package_sha256: SHA-256 of the package.
        gpu: name of the GPU it was built on.
        driver: driver version there.
        format: :data:`FORMAT`.
    """

    torch_version: str
    device: str
    compute_capability: str
    checkpoint_sha256: str
    preprocessing_id: str
    image_size: int
    precision: str
    max_batch: int
    package_sha256: str = ""
    gpu: str = ""
    driver: str = ""
    format: int = FORMAT

    @property
    def key(self) -> str:
        """What decides whether a rebuild would give the same package, as 64 hex digits."""
        deciding = asdict(self)
        for name in ("package_sha256", "gpu", "driver"):
            del deciding[name]
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> bytes:
        """Content of ``model.pt2.json``."""
        values = {**asdict(self), "key": self.key}
        return (json.dumps(values, indent=2) + "\n").encode()

    @classmethod
    def load(cls, package: Path) -> PackageManifest:
        """Read the manifest beside a package.

        Raises:
            PackageError: missing or unreadable.
        """
        path = package_manifest_path(package)
        try:
            values: dict[str, Any] = json.loads(path.read_text())
            values.pop("key", None)
            return cls(**values)
        except FileNotFoundError:
            raise PackageError(f"no {path}: compile the network with `{REBUILD}`") from None
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise PackageError(f"{path} is unreadable ({reason(error)}): run `{REBUILD}`") from None


def package_manifest_path(package: Path) -> Path:
    """Where the manifest of a package lies."""
    return package.with_name(package.name + ".json")


def check_package(
    package: Path,
    *,
    checkpoint_sha256: str | None = None,
    preprocessing_id: str | None = None,
    torch_version: str | None = None,
    compute_capability: str | None = None,
    batch: int | None = None,
) -> PackageManifest:
    """Refuse a package that would not run, or would serve another model.

    Args:
        package: ``model.pt2``.
        checkpoint_sha256: of the checkpoint it must have been made from; None does not ask.
        preprocessing_id: of the pixels it will get; None does not ask.
        torch_version: of the PyTorch that will load it; None does not ask.
        compute_capability: of the GPU it will run on, or ``cpu``; None does not ask.
        batch: the largest batch it must take; None does not ask.

    Returns:
        Its manifest.

    Raises:
        PackageError: missing, damaged, or it does not fit.
    """
    if not package.is_file():
        raise PackageError(f"no {package}: compile the network with `{REBUILD}`")
    manifest = PackageManifest.load(package)
    reason = ""
    if sha256_file(package) != manifest.package_sha256:
        reason = "the file is damaged, or not the one its manifest describes"
    elif manifest.format != FORMAT:
        reason = f"it has format {manifest.format}, this version runs {FORMAT}"
    elif checkpoint_sha256 is not None and manifest.checkpoint_sha256 != checkpoint_sha256:
        reason = "it was built from another checkpoint than model.onnx"
    elif preprocessing_id is not None and manifest.preprocessing_id != preprocessing_id:
        reason = "it was built for another preprocessing"
    elif torch_version is not None and manifest.torch_version != torch_version:
        reason = f"it was built with PyTorch {manifest.torch_version}, here is {torch_version}"
    elif compute_capability is not None and manifest.compute_capability != compute_capability:
        reason = _other_device(manifest.compute_capability, compute_capability)
    elif batch is not None and manifest.max_batch < batch:
        reason = f"it takes batches of 1 to {manifest.max_batch}, 1 to {batch} are asked for"
    if reason:
        raise PackageError(f"{package} does not fit: {reason}. Rebuild it with `{REBUILD}`")
    return manifest


def _other_device(built: str, here: str) -> str:
    if here == "cpu":
        return f"it was built for compute capability {built}, not for the CPU"
    if built == "cpu":
        return f"it was built for the CPU, the GPU here has compute capability {here}"
    return f"it was built for compute capability {built}, the GPU here has {here}"
