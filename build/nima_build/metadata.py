"""What travels beside the network's artefacts: ``model.json``, readable without torch.

Export writes it, the repository is rendered from it, the server and its clients report it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from nima_client._files import write_atomic
from nima_client.contract import CONTRACT_VERSION, ServedModel
from nima_client.preprocess import PreprocessSpec

METADATA_NAME = "model.json"
PROPERTY_PREFIX = "nima."
"""Of what an ONNX graph says of itself, its string metadata."""


class ArtefactError(RuntimeError):
    """An artefact is missing, damaged or does not belong to its neighbours."""


class ExportError(RuntimeError):
    """A checkpoint cannot be exported, or a graph converted; the message says why."""


@dataclass(frozen=True)
class ModelMetadata:
    """The identity of an exported network.

    Attributes:
        name: checkpoint name.
        backbone: torchvision name of the backbone.
        checkpoint_sha256: SHA-256 of the checkpoint's ``model.safetensors``.
        onnx_sha256: SHA-256 of the ONNX file this stands beside.
        preprocessing: fields of the :class:`~nima_client.preprocess.PreprocessSpec`.
        opset: ONNX opset of the graph.
        reference_set: photos behind the quantiles.
        reference_quantiles: 101 mean ratings, ascending.
        git_commit: commit of the tree that exported, or empty.
    """

    name: str
    backbone: str
    checkpoint_sha256: str
    onnx_sha256: str
    preprocessing: dict[str, Any]
    opset: int = 0
    reference_set: str = ""
    reference_quantiles: tuple[float, ...] = field(default=())
    git_commit: str = ""

    @property
    def spec(self) -> PreprocessSpec:
        """The preprocessing specification."""
        return PreprocessSpec.from_dict(self.preprocessing)

    def served(self) -> ServedModel:
        """What a server of this network tells its clients."""
        return ServedModel(
            contract_version=CONTRACT_VERSION,
            checkpoint_name=self.name,
            checkpoint_sha256=self.checkpoint_sha256,
            preprocessing_id=self.spec.id,
            reference_set=self.reference_set,
            reference_quantiles=self.reference_quantiles,
        )

    def to_json(self) -> bytes:
        """Content of ``model.json``."""
        values = {**asdict(self), "preprocessing_id": self.spec.id}
        return (json.dumps(values, indent=2) + "\n").encode()

    def save(self, path: Path) -> None:
        """Write as JSON, atomically."""
        write_atomic(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> ModelMetadata:
        """Read :meth:`save` back.

        Raises:
            ArtefactError: missing, not JSON, a field missing or of the wrong kind.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise TypeError("it is no object")
            known = {f.name for f in fields(cls)}
            given = {key: value for key, value in values.items() if key in known}
            quantiles = values.get("reference_quantiles", ())
            given["reference_quantiles"] = tuple(float(q) for q in quantiles)
            metadata = cls(**given)
            for f in fields(cls):
                if f.type == "str" and not isinstance(getattr(metadata, f.name), str):
                    raise TypeError(f"{f.name} is no text")
            _ = metadata.spec
        except FileNotFoundError:
            raise ArtefactError(f"no {path}: run `nima export` first") from None
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ArtefactError(
                f"{path} is unreadable ({error}): run `nima export` again"
            ) from None
        return metadata
