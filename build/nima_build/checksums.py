"""The manifest of a model repository: ``SHA256SUMS``, in the format of sha256sum.

It names what was exported rather than written: graphs and the facts beside them. A shell checks it
with ``sha256sum --check``, `nima serve` with :func:`check_checksums`. Engines are not in it: each
belongs to one machine and is copied into no image, and its own manifest has its hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path

from nima_build.metadata import METADATA_NAME, ArtefactError
from nima_build.repository import GRAPHS
from nima_client._files import sha256_file, write_atomic, write_together
from nima_client.contract import NETWORK_MODEL

CHECKSUMS_NAME = "SHA256SUMS"
_EXPORTED = ("*/1/*.onnx", "*/1/*.json")
_OF_AN_ENGINE = (".plan.json", ".pt2.json")
_SERVED = tuple(f"{NETWORK_MODEL}/1/{name}" for name in (METADATA_NAME, *GRAPHS.values()))


def checksums(
    repository: Path,
    staged: Mapping[Path, bytes] | None = None,
    without: Collection[Path] = (),
) -> bytes:
    """Content of the manifest: every artefact of a repository with its SHA-256.

    Args:
        repository: folder of the models.
        staged: files about to be written there, which count instead of what lies there now.
        without: files about to be removed.
    """
    found = {path for pattern in _EXPORTED for path in repository.glob(pattern)}
    kept = (path for path in found.difference(without) if not path.name.endswith(_OF_AN_ENGINE))
    digests = dict.fromkeys(kept, "")
    for path, data in (staged or {}).items():
        if any(path.relative_to(repository).match(pattern) for pattern in _EXPORTED):
            digests[path] = hashlib.sha256(data).hexdigest()
    return "".join(
        f"{digest or sha256_file(path)}  {path.relative_to(repository).as_posix()}\n"
        for path, digest in sorted(digests.items())
    ).encode()


def write_checksums(repository: Path) -> Path:
    """Name every artefact of a repository with its SHA-256."""
    target = repository / CHECKSUMS_NAME
    write_atomic(target, checksums(repository))
    return target


def write_artefacts(
    files: Mapping[Path, bytes], repository: Path | None, outdated: Collection[Path] = ()
) -> None:
    """Write artefacts, all or none of them, with the manifest of the repository they lie in.

    Args:
        files: contents by path.
        repository: folder of the models; None where the files lie in none.
        outdated: files that must not stand beside them; removed once they are there.

    Raises:
        OSError: a file could not be written; none has been replaced.
    """
    staged = dict(files)
    if repository is not None:
        staged[repository / CHECKSUMS_NAME] = checksums(repository, files, outdated)
    write_together(staged)
    for path in outdated:
        path.unlink(missing_ok=True)


def check_checksums(repository: Path, model: str = "") -> int:
    """Compare every artefact the manifest names with its SHA-256.

    Args:
        repository: folder of the models.
        model: look at those of one model only.

    Returns:
        How many there are.

    Raises:
        ArtefactError: no manifest, or one that leaves out a graph or the facts of the network; or
            an artefact is missing or has changed.
        OSError: a file cannot be read.
    """
    path = repository / CHECKSUMS_NAME
    if not path.is_file():
        raise ArtefactError(f"no {path}: run `nima export`, which writes it")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        raise ArtefactError(f"{path} is unreadable: run `nima export` again") from None
    named = [line.split("  ", 1) for line in lines if line]
    for entry in named:
        if len(entry) != 2:
            raise ArtefactError(f"{path} is unreadable: run `nima export` again")
        digest, name = entry
        if model and not name.startswith(f"{model}/"):
            continue
        artefact = repository / name
        if not artefact.is_file():
            raise ArtefactError(f"{artefact} is missing: run `nima export` again")
        if sha256_file(artefact) != digest:
            raise ArtefactError(
                f"{artefact} is not what {CHECKSUMS_NAME} names: it is damaged or half replaced. "
                "Run `nima export` again"
            )
    # What a manifest that was cut short does not name, nothing vouches for.
    wanted = set(_SERVED if model in ("", NETWORK_MODEL) else ())
    for name in sorted(wanted.difference(name for _, name in named)):
        if (repository / name).is_file():
            raise ArtefactError(f"{path} does not name {name}: run `nima export` again")
    return len(named)
