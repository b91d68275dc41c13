"""The manifest of a model repository: ``SHA256SUMS``, in the format of sha256sum.

It names what was built rather than written: graphs, engines and the facts beside them. A shell
checks it with ``sha256sum --check``, `nima serve` with :func:`check_checksums`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from nima_build.metadata import ArtefactError
from nima_client._files import sha256_file, write_atomic, write_together
from nima_client._package import PackageError

CHECKSUMS_NAME = "SHA256SUMS"


class _Manifest(Protocol):
    @property
    def key(self) -> str: ...


_AnyManifest = TypeVar("_AnyManifest", bound=_Manifest)
_BUILT = ("*/1/*.onnx", "*/1/*.json", "*/1/*.plan", "*/1/*.pt2")


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
    found = {path for pattern in _BUILT for path in repository.glob(pattern)}
    digests = dict.fromkeys(found.difference(without), "")
    for path, data in (staged or {}).items():
        if any(path.relative_to(repository).match(pattern) for pattern in _BUILT):
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


def built_before(
    check: Callable[[], _AnyManifest], wanted: _AnyManifest, repository: Path | None
) -> _AnyManifest | None:
    """The manifest of an artefact that a rebuild would only make again; None if it has to be built.

    Args:
        check: reads the manifest of the one that is there, or refuses it.
        wanted: what would be built.
        repository: folder of the models, whose own manifest is renewed; None where it lies in none.
    """
    try:
        found = check()
    except (ArtefactError, PackageError):
        return None
    if found.key != wanted.key:
        return None
    if repository is not None:
        write_checksums(repository)
    return found


def check_checksums(repository: Path) -> int:
    """Compare every artefact the manifest names with its SHA-256.

    Returns:
        How many there are.

    Raises:
        ArtefactError: no manifest, or an artefact is missing or has changed.
    """
    path = repository / CHECKSUMS_NAME
    if not path.is_file():
        raise ArtefactError(f"no {path}: run `nima export`, which writes it")
    lines = path.read_text().split("\n")
    named = [line.split("  ", 1) for line in lines if line]
    for entry in named:
        if len(entry) != 2:
            raise ArtefactError(f"{path} is unreadable: run `nima export` again")
        digest, name = entry
        artefact = repository / name
        if not artefact.is_file():
            raise ArtefactError(f"{artefact} is missing: run `nima export` (or `nima build`) again")
        if sha256_file(artefact) != digest:
            raise ArtefactError(
                f"{artefact} is not what {CHECKSUMS_NAME} names: it is damaged or half replaced. "
                "Run `nima export` (or `nima build`) again"
            )
    return len(named)
