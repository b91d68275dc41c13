"""What an engine was built from and for: ``model.plan.json``, readable without TensorRT.

An engine runs on the GPU architecture and the TensorRT version it was built with. The manifest
says so in words before TensorRT refuses in its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from nima_build.metadata import ArtefactError
from nima_client._files import sha256_file
from nima_client._package import PackageError
from nima_client.contract import MAX_BATCH_SIZE

PLAN_NAME = "model.plan"
RTX_PLAN_NAME = "model.rtx.plan"
"""Of TensorRT for RTX, which Triton does not serve: not in the place of what it does."""
REBUILD = "nima build --target tensorrt"

Precision = Literal["fp16", "fp32"]

RUNTIME = "tensorrt"
"""What Triton serves with; the other runtime, TensorRT for RTX, only proves the build."""


class _Manifest(Protocol):
    @property
    def key(self) -> str: ...


_AnyManifest = TypeVar("_AnyManifest", bound=_Manifest)


class EngineMismatch(ArtefactError):
    """The engine does not belong to the model, the GPU or the TensorRT at hand."""


@dataclass(frozen=True)
class EngineOptions:
    """What may be chosen when an engine is built.

    Attributes:
        precision: of the network's body; softmax and moments are FP32 in both.
        min_batch: smallest batch of the optimisation profile.
        opt_batch: the batch TensorRT tunes for.
        max_batch: largest batch; the model configs say the same.
        workspace_mib: memory TensorRT may use while it tries tactics, in MiB.
        version_compatible: run on later TensorRT versions too, for some speed; Triton then needs
            ``--backend-config=tensorrt,version-compatible=true``, which the docker entrypoint adds.
        hardware_compatible: run on every GPU from Ampere on, for some speed.
    """

    precision: Precision = "fp16"
    min_batch: int = 1
    opt_batch: int = 8
    max_batch: int = MAX_BATCH_SIZE
    workspace_mib: int = 2048
    version_compatible: bool = False
    hardware_compatible: bool = False

    def __post_init__(self) -> None:
        if self.precision not in ("fp16", "fp32"):
            raise ValueError(f"precision must be fp16 or fp32, not {self.precision!r}")
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch:
            raise ValueError("batch sizes must satisfy 1 <= min <= opt <= max")
        if self.workspace_mib < 1:
            raise ValueError("workspace_mib must be at least 1")


@dataclass(frozen=True)
class EngineManifest:
    """Identity of an engine.

    Attributes:
        runtime: ``tensorrt`` or ``tensorrt_rtx``.
        runtime_version: its version.
        compute_capability: of the GPU it was built for, e.g. ``8.9``.
        onnx_sha256: SHA-256 of the FP32 ``model.onnx`` it was made from.
        options: how it was built.
        engine_sha256: SHA-256 of the plan.
        gpu: name of the GPU it was built on; empty when built without one.
        driver: driver version there.
    """

    runtime: str
    runtime_version: str
    compute_capability: str
    onnx_sha256: str
    options: EngineOptions
    engine_sha256: str = ""
    gpu: str = ""
    driver: str = ""

    @property
    def key(self) -> str:
        """What decides whether a rebuild would give the same engine, as 64 hex digits."""
        deciding = [
            self.runtime,
            self.runtime_version,
            self.compute_capability,
            self.onnx_sha256,
            asdict(self.options),
        ]
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> bytes:
        """Content of ``model.plan.json``."""
        values = {**asdict(self), "key": self.key}
        return (json.dumps(values, indent=2) + "\n").encode()

    @classmethod
    def load(cls, plan: Path) -> EngineManifest:
        """Read the manifest beside a plan.

        Raises:
            ArtefactError: missing or unreadable.
        """
        path = manifest_path(plan)
        try:
            values: dict[str, Any] = json.loads(path.read_text())
            values.pop("key", None)
            options = EngineOptions(**values.pop("options"))
            return cls(options=options, **values)
        except FileNotFoundError:
            raise ArtefactError(f"no {path}: build the engine with `{REBUILD}`") from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ArtefactError(f"{path} is unreadable ({error}): run `{REBUILD}`") from None


def manifest_path(plan: Path) -> Path:
    """Where the manifest of a plan lies."""
    return plan.with_name(plan.name + ".json")


def check_engine(
    plan: Path,
    *,
    onnx_sha256: str | None = None,
    runtime: str | None = None,
    runtime_version: str | None = None,
    compute_capabilities: Sequence[str] = (),
    batch: int | None = None,
) -> EngineManifest:
    """Refuse an engine that would not run, or would serve another model.

    Args:
        plan: the engine file.
        onnx_sha256: of the model it must have been made from; None does not ask.
        runtime: ``tensorrt`` or ``tensorrt_rtx``, whichever will load it; None does not ask.
        runtime_version: of the TensorRT that will load it; None does not ask.
        compute_capabilities: of the GPUs it will run on; empty does not ask.
        batch: the largest batch the model config promises; None does not ask.

    Returns:
        Its manifest.

    Raises:
        EngineMismatch: with the reason and the command that rebuilds it.
        ArtefactError: the plan or its manifest is missing or unreadable.
    """
    if not plan.is_file():
        raise ArtefactError(f"no {plan}: build the engine with `{REBUILD}`")
    manifest = EngineManifest.load(plan)
    built, options = manifest.runtime_version, manifest.options
    others = [one for one in compute_capabilities if not _runs_on(manifest, one)]
    reason = ""
    if sha256_file(plan) != manifest.engine_sha256:
        reason = "the file is damaged, or not the one its manifest describes"
    elif onnx_sha256 is not None and manifest.onnx_sha256 != onnx_sha256:
        reason = "it was built from another model.onnx"
    elif runtime is not None and manifest.runtime != runtime:
        reason = f"it is an engine of {manifest.runtime}, not of {runtime}"
    elif runtime_version is not None and not _loads(manifest, runtime_version):
        reason = f"it was built with TensorRT {built}, here is {runtime_version}"
    elif others:
        reason = (
            f"it was built for compute capability {manifest.compute_capability}, "
            f"the GPU here has {others[0]}"
        )
    elif batch is not None and not options.min_batch <= 1 <= batch <= options.max_batch:
        reason = (
            f"it takes batches of {options.min_batch} to {options.max_batch}, "
            f"the model config promises 1 to {batch}"
        )
    if reason:
        raise EngineMismatch(f"{plan} does not fit: {reason}. Rebuild it with `{REBUILD}`")
    return manifest


def _version(text: str) -> tuple[int, ...]:
    """The numbers of a version; ``10.13.3.9.post1`` is the library 10.13.3.9."""
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def _loads(manifest: EngineManifest, version: str) -> bool:
    """Whether a TensorRT version takes the engine, by the support matrix of TensorRT.

    Major, minor, patch and build must be equal. A version-compatible engine runs on every later
    version of its major, and one of TensorRT 10 on 11.
    """
    built, here = _version(manifest.runtime_version), _version(version)
    if not manifest.options.version_compatible:
        return here == built
    return here >= built and (here[0] == built[0] or (built[0], here[0]) == (10, 11))


def _runs_on(manifest: EngineManifest, capability: str) -> bool:
    if manifest.options.hardware_compatible:
        return _version(capability) >= (8, 0)
    return capability == manifest.compute_capability


def built_before(check: Callable[[], _AnyManifest], wanted: _AnyManifest) -> _AnyManifest | None:
    """The manifest of an artefact that a rebuild would only make again; None if it has to be built.

    Args:
        check: reads the manifest of the one that is there, or refuses it.
        wanted: what would be built.
    """
    try:
        found = check()
    except (ArtefactError, PackageError):
        return None
    return found if found.key == wanted.key else None
