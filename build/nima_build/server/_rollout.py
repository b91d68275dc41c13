"""A new network without a failed request: load before unload, by explicit model control.

The rendered repository holds the version of the network that serves and the one before it. The
ensemble names the one it uses, and its own version is the same number, so that each answer says
which network it comes from::

    nima/2  ->  nima_preprocess/1  ->  nima_network/2

1. Copy the network beside the old one, load both, and run the new one once.
2. Point the ensemble at it and load that: Triton puts the new one in place, and lets go of the old
   one when its requests in flight are done.
3. Unload the old network. Its files stay, for :func:`roll_back`; those of any other go, a version
   that was withdrawn among them.

Every step leaves a repository that a restarted server can load.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nima_build.metadata import METADATA_NAME, ArtefactError, ModelMetadata
from nima_build.repository import ONNX_NAME, check_graph, load_metadata, read_config
from nima_build.server._gpu import GPU_MODEL, check_gpu
from nima_build.server._install import ServerError
from nima_build.server._security import GRPC_ADMIN_HEADER
from nima_client._files import sha256_file, write_atomic
from nima_client.contract import (
    MODEL_NAME,
    NETWORK_MODEL,
    OUTPUT_DISTRIBUTION,
    PIXELS,
    PREPROCESS_MODEL,
)
from nima_client.preprocess import PreprocessSpec

_UNLOAD_SECONDS = 60.0
_POLL_SECONDS = 0.05


class RolloutError(ServerError):
    """The new version was not put in place; the old one serves on."""


@dataclass(frozen=True)
class Rollout:
    """A version that was put in place.

    Attributes:
        version: what clients now see as ``model_version``.
        previous: what they saw before.
        metadata: identity of the network that now answers.
        seconds: from the first step to the old network's end.
    """

    version: int
    previous: int
    metadata: ModelMetadata
    seconds: float


class Repository:
    """A rendered repository and the server, under explicit model control, that serves it.

    Args:
        folder: the repository; this process may write it.
        client: ``tritonclient.grpc.InferenceServerClient`` of the server.
        admin_token: opens the server's repository API.
    """

    def __init__(self, folder: Path, client: Any, admin_token: str) -> None:
        self._folder = folder
        self._client = client
        self._headers = {GRPC_ADMIN_HEADER: admin_token}

    def current(self) -> int:
        """The version that the ensemble serves."""
        versions = read_config(self._config(MODEL_NAME)).version_policy.specific.versions
        return int(versions[-1]) if versions else 1

    def versions(self) -> list[int]:
        """Every version of the network on disk, ascending."""
        folders = (self._folder / NETWORK_MODEL).iterdir()
        return sorted(int(f.name) for f in folders if f.is_dir() and f.name.isdigit())

    def roll_out(self, source: Path) -> Rollout:
        """Serve the network of another repository from now on.

        Raises:
            RolloutError: it cannot take the place of the present one, or did not load.
        """
        metadata = self._check(source)
        version = max(self.versions()) + 1
        target = self._folder / NETWORK_MODEL / str(version)
        partial = target.with_name(f".{version}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            shutil.copytree(
                source / NETWORK_MODEL / "1", partial, ignore=shutil.ignore_patterns("*.pyc", "__*")
            )
            partial.rename(target)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise RolloutError(f"cannot copy the new network: {error}") from None
        try:
            return self._switch(version, metadata)
        except RolloutError:
            shutil.rmtree(target, ignore_errors=True)
            raise

    def roll_back(self) -> Rollout:
        """Serve again what was served before the present version, which is thereby withdrawn.

        Raises:
            RolloutError: there is none, or it did not load.
        """
        current = self.current()
        earlier = [v for v in self.versions() if v < current]
        if not earlier:
            raise RolloutError(f"nothing older than version {current} is kept to go back to")
        path = self._folder / NETWORK_MODEL / str(earlier[-1]) / METADATA_NAME
        return self._switch(earlier[-1], ModelMetadata.load(path))

    # -- inside --------------------------------------------------------------------------------

    def _config(self, model: str) -> Path:
        return self._folder / model / "config.pbtxt"

    def _check(self, source: Path) -> ModelMetadata:
        try:
            metadata = load_metadata(source)
            onnx = source / NETWORK_MODEL / "1" / ONNX_NAME
            if not onnx.is_file() or sha256_file(onnx) != metadata.onnx_sha256:
                raise RolloutError(f"{onnx} is not the file that {METADATA_NAME} describes")
            ensemble = read_config(self._config(MODEL_NAME)).parameters
            check_graph(source, ensemble["precision"].string_value or "fp32")
            if read_config(self._config(NETWORK_MODEL)).default_model_filename == GPU_MODEL:
                check_gpu(source)
        except (ArtefactError, ServerError) as error:
            raise RolloutError(str(error)) from None
        parameters = read_config(self._config(PREPROCESS_MODEL)).parameters
        served = PreprocessSpec.from_dict(json.loads(parameters["preprocessing"].string_value))
        if served.id != metadata.spec.id:
            raise RolloutError(
                f"{metadata.name} wants another preprocessing ({metadata.spec.id}) than the one "
                f"served ({served.id}): start a second server and move the clients to it"
            )
        return metadata

    def _switch(self, version: int, metadata: ModelMetadata) -> Rollout:
        begin, previous = time.monotonic(), self.current()
        before = {model: self._config(model).read_bytes() for model in (MODEL_NAME, NETWORK_MODEL)}
        try:
            self._edit(NETWORK_MODEL, lambda config: _serve_only(config, previous, version))
            self._client.load_model(NETWORK_MODEL, headers=self._headers)
            self._try_network(version)
            self._edit(MODEL_NAME, lambda config: _point_at(config, version, metadata))
            (self._folder / MODEL_NAME / str(version)).mkdir(exist_ok=True)
            self._client.load_model(MODEL_NAME, headers=self._headers)
        except Exception as error:
            self._restore(before)
            raise RolloutError(f"version {version} was not put in place: {error}") from None
        # From here on the new version serves; what is left is to free the old one's memory.
        self._wait_unloaded(previous)
        self._edit(NETWORK_MODEL, lambda config: _serve_only(config, version))
        self._client.load_model(NETWORK_MODEL, headers=self._headers)
        self._keep_only(version, previous)
        return Rollout(version, previous, metadata, time.monotonic() - begin)

    def _keep_only(self, *versions: int) -> None:
        for model in (MODEL_NAME, NETWORK_MODEL):
            for folder in (self._folder / model).iterdir():
                if folder.is_dir() and folder.name.isdigit() and int(folder.name) not in versions:
                    shutil.rmtree(folder, ignore_errors=True)

    def _edit(self, model: str, change: Callable[[Any], None]) -> None:
        from google.protobuf import text_format

        path = self._config(model)
        config = read_config(path)
        change(config)
        write_atomic(path, text_format.MessageToString(config).encode())

    def _try_network(self, version: int) -> None:
        import tritonclient.grpc as triton

        dims = read_config(self._config(NETWORK_MODEL)).input[0].dims
        pixels = triton.InferInput(PIXELS, [1, *dims], "UINT8")
        pixels.set_data_from_numpy(np.full((1, *dims), 127, np.uint8))
        answer = self._client.infer(NETWORK_MODEL, [pixels], model_version=str(version))
        total = float(answer.as_numpy(OUTPUT_DISTRIBUTION).sum())
        if not abs(total - 1.0) < 1e-3:
            raise RolloutError(f"its probabilities sum to {total:g}")

    def _wait_unloaded(self, version: int) -> None:
        deadline = time.monotonic() + _UNLOAD_SECONDS
        while time.monotonic() < deadline:
            index = self._client.get_model_repository_index(headers=self._headers)
            states = {m.version: m.state for m in index.models if m.name == MODEL_NAME}
            if states.get(str(version)) not in ("READY", "UNLOADING"):
                return
            time.sleep(_POLL_SECONDS)

    def _restore(self, before: dict[str, bytes]) -> None:
        for model, config in before.items():
            write_atomic(self._config(model), config)
        for model in (MODEL_NAME, NETWORK_MODEL):
            try:
                self._client.load_model(model, headers=self._headers)
            except Exception:
                # What was loaded stays loaded when a load fails; the next start reads the files.
                continue


def _serve_only(config: Any, *versions: int) -> None:
    config.version_policy.Clear()
    config.version_policy.specific.versions.extend(sorted(set(versions)))


def _point_at(config: Any, version: int, metadata: ModelMetadata) -> None:
    for step in config.ensemble_scheduling.step:
        if step.model_name == NETWORK_MODEL:
            step.model_version = version
    for key, value in metadata.served().to_parameters().items():
        config.parameters[key].string_value = value
    _serve_only(config, version)
