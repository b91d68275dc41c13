"""Golden scores: the bundled model's answers for photos that every clone has.

The photos are those the scikit-image wheel ships, named with their SHA-256, so the gate works
offline and notices when another version ships other files.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from nima_build.metadata import ArtefactError
from nima_client._files import sha256_file, write_atomic

GOLDEN_PATH = Path(__file__).with_name("golden.json")
PHOTOS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "grass.png",
    "gravel.png",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)


@dataclass(frozen=True)
class GoldenScore:
    """The committed score of one photo."""

    name: str
    sha256: str
    mean: float
    std: float
    distribution: tuple[float, ...]


@dataclass(frozen=True)
class Golden:
    """Committed scores and the model they are of."""

    checkpoint_sha256: str
    preprocessing_id: str
    scores: tuple[GoldenScore, ...]

    def save(self, path: Path = GOLDEN_PATH) -> None:
        """Write as JSON, atomically."""
        write_atomic(path, (json.dumps(asdict(self), indent=1) + "\n").encode())


def load_golden(path: Path = GOLDEN_PATH) -> Golden | None:
    """The committed scores; None when there are none.

    Raises:
        ArtefactError: the file is unreadable.
    """
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text())
        scores = tuple(
            GoldenScore(**{**score, "distribution": tuple(score["distribution"])})
            for score in values.pop("scores")
        )
        return Golden(scores=scores, **values)
    except (ValueError, TypeError, KeyError) as error:
        raise ArtefactError(f"{path} is unreadable: {error}") from None


def golden_photos() -> list[Path]:
    """The photos, as files of the installed scikit-image.

    Raises:
        ArtefactError: scikit-image is not installed, or ships none of them.
    """
    try:
        import skimage
    except ModuleNotFoundError:
        raise ArtefactError(
            "the golden photos come with scikit-image: pip install scikit-image, or name photos"
        ) from None
    folder = Path(skimage.__file__).parent / "data"
    found = [folder / name for name in PHOTOS if (folder / name).is_file()]
    if not found:
        raise ArtefactError(f"none of the golden photos is in {folder}: name photos instead")
    return found


def unchanged(golden: Golden, photos: list[Path]) -> dict[Path, GoldenScore]:
    """The golden score of each photo whose content is the one it was computed from."""
    known = {score.name: score for score in golden.scores}
    return {
        path: known[path.name]
        for path in photos
        if path.name in known and sha256_file(path) == known[path.name].sha256
    }
