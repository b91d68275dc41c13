"""A new network without a failed request: load before unload, by explicit model control.

The rendered repository holds the version of the network that serves and the one before it. The
ensemble names the one it uses, and its own version is the same number, so that each answer says
which network it comes from::

    nima/2  ->  nima_preprocess/1  ->  nima_network/2

1. Copy the network, check the copy, put it beside the old one, load both, and run the new one once.
2. Point the ensemble at it and load that: Triton puts the new one in place, and lets go of the old
   one when its requests in flight are done.
3. Unload the old network. Its files stay, for :func:`roll_back`; those of any other go, a version
   that was withdrawn among them.

Every step leaves a repository that a restarted server can load. What :func:`roll_back` goes back to
stands in the ensemble's config, and so changes with it.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nima_build.checksums import CHECKSUMS_NAME, check_checksums
from nima_build.metadata import METADATA_NAME, ArtefactError, ModelMetadata
from nima_build.repository import ONNX_NAME, check_graph, copy_version, load_metadata, read_config
from nima_build.server._gpu import GPU_MODEL, check_gpu
from nima_build.server._install import ServerError
from nima_build.server._security import GRPC_ADMIN_HEADER
from nima_client._files import sha256_file, write_atomic
from nima_client._os_errors import in_words
from nima_client.contract import (
    MODEL_NAME,
    NETWORK_MODEL,
    OUTPUT_DISTRIBUTION,
    PIXELS,
    PREPROCESS_MODEL,
)
from nima_client.preprocess import PreprocessSpec

# In the ensemble's parameters: the version that was served before; empty after a rollback.
_BEFORE = "served_before"
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
        remains: why the old network is still loaded; empty when it is not.
    """

    version: int
    previous: int
    metadata: ModelMetadata
    seconds: float
    remains: str = ""


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
        current = self.current()
        version = max(self.versions()) + 1
        target = self._version(version)
        with self._staged(source) as staged:
            try:
                metadata = self._check(staged)
            except RolloutError as error:
                # The operator knows it by the place it was copied from.
                raise RolloutError(str(error).replace(str(staged), str(source))) from None
            files = staged / NETWORK_MODEL / "1"
            if _same_files(files, self._version(current)):
                raise RolloutError(
                    f"{metadata.name} is what version {current} serves already: nothing was changed"
                )
            files.rename(target)
        return self._switch(version, metadata, before=current)

    def roll_back(self) -> Rollout:
        """Serve again what was served before the present version, which is thereby withdrawn.

        Raises:
            RolloutError: there is none, or it did not load.
        """
        earlier = read_config(self._config(MODEL_NAME)).parameters[_BEFORE].string_value
        if not earlier or int(earlier) not in self.versions():
            raise RolloutError(f"nothing older than version {self.current()} is kept to go back to")
        version = int(earlier)
        return self._switch(version, ModelMetadata.load(self._version(version) / METADATA_NAME))

    # -- inside --------------------------------------------------------------------------------

    def _config(self, model: str) -> Path:
        return self._folder / model / "config.pbtxt"

    def _version(self, version: int) -> Path:
        return self._folder / NETWORK_MODEL / str(version)

    @contextlib.contextmanager
    def _staged(self, source: Path) -> Iterator[Path]:
        """A copy of a repository's network: what is checked there is what will be served."""
        staged = self._folder.with_name(f".{self._folder.name}.staged")
        shutil.rmtree(staged, ignore_errors=True)
        try:
            files = staged / NETWORK_MODEL / "1"
            files.mkdir(parents=True)
            copy_version(source / NETWORK_MODEL / "1", files)
            if (source / CHECKSUMS_NAME).is_file():
                shutil.copyfile(source / CHECKSUMS_NAME, staged / CHECKSUMS_NAME)
            yield staged
        except OSError as error:
            raise RolloutError(f"cannot copy the new network: {in_words(error)}") from None
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def _check(self, source: Path) -> ModelMetadata:
        """The metadata of a network that may take the place of the present one."""
        try:
            metadata = load_metadata(source)
            onnx = source / NETWORK_MODEL / "1" / ONNX_NAME
            if not onnx.is_file() or sha256_file(onnx) != metadata.onnx_sha256:
                raise RolloutError(f"{onnx} is not the file that {METADATA_NAME} describes")
            ensemble = read_config(self._config(MODEL_NAME)).parameters
            check_graph(source, ensemble["precision"].string_value or "fp32")
            if (source / CHECKSUMS_NAME).is_file():
                check_checksums(source, NETWORK_MODEL)
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

    def _switch(self, version: int, metadata: ModelMetadata, before: int | None = None) -> Rollout:
        """Serve a version that lies in the repository.

        Args:
            version: of the network.
            metadata: its identity.
            before: what a rollback will go back to. None for a rollback, after which there is
                nothing to go back to.
        """
        begin, previous = time.monotonic(), self.current()
        configs = {m: self._config(m).read_bytes() for m in (MODEL_NAME, NETWORK_MODEL)}
        try:
            self._edit(NETWORK_MODEL, lambda config: _serve_only(config, previous, version))
            self._client.load_model(NETWORK_MODEL, headers=self._headers)
            self._try_network(version)
            self._edit(MODEL_NAME, lambda config: _point_at(config, version, metadata, before))
            (self._folder / MODEL_NAME / str(version)).mkdir(exist_ok=True)
            self._client.load_model(MODEL_NAME, headers=self._headers)
        except BaseException as error:
            if before is not None:
                # First, since it may be what has filled the disk.
                shutil.rmtree(self._version(version), ignore_errors=True)
            self._restore(configs)
            if not isinstance(error, Exception):
                raise
            why = in_words(error)
            raise RolloutError(f"version {version} was not put in place: {why}") from None
        remains = self._let_go(previous, version)
        self._keep_only(version, previous)
        return Rollout(version, previous, metadata, time.monotonic() - begin, remains)

    def _let_go(self, previous: int, version: int) -> str:
        """Free the old network's memory; why that could not be done, or nothing.

        The new version serves already, so that no failure here is one of the rollout.
        """
        remains = ""
        try:
            self._wait_unloaded(previous)
        except Exception as error:
            remains = in_words(error)
        try:
            # Even where the server has gone meanwhile: the next one reads it.
            self._edit(NETWORK_MODEL, lambda config: _serve_only(config, version))
            self._client.load_model(NETWORK_MODEL, headers=self._headers)
        except Exception as error:
            remains = in_words(error)
        return remains

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
            # On a full disk the rest is put right nevertheless.
            with contextlib.suppress(OSError):
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


def _same_files(one: Path, other: Path) -> bool:
    names, others = ({p.name for p in folder.iterdir() if p.is_file()} for folder in (one, other))
    return names == others and not any(filecmp.cmpfiles(one, other, names, shallow=False)[1:])


def _point_at(config: Any, version: int, metadata: ModelMetadata, before: int | None) -> None:
    for step in config.ensemble_scheduling.step:
        if step.model_name == NETWORK_MODEL:
            step.model_version = version
    for key, value in metadata.served().to_parameters().items():
        config.parameters[key].string_value = value
    config.parameters[_BEFORE].string_value = "" if before is None else str(before)
    _serve_only(config, version)
