"""Score photographs with a real tritonserver, from nothing: what ``make demo`` runs.

python examples/demo.py             photographs that ship with scikit-image, and blurred copies
python examples/demo.py FOLDER ...  your own photos
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageFilter

from nima_build.metadata import ArtefactError
from nima_build.server import EmbeddedServer, ServerError
from nima_client._signals import stoppable

PHOTOS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
    "rocket.jpg",
)
BLUR_SHARE = 0.012


def sample_photos(folder: Path) -> None:
    """Copy the sample photographs and make a blurred copy of each."""
    import skimage

    source = Path(skimage.__file__).parent / "data"
    for name in PHOTOS:
        with Image.open(source / name) as image:
            photo = image.convert("RGB")
        stem = Path(name).stem
        photo.save(folder / f"{stem}.png")
        radius = BLUR_SHARE * min(photo.size)
        photo.filter(ImageFilter.GaussianBlur(radius)).save(folder / f"{stem}_blurred.png")


def main() -> int:
    """Run the demo; returns the exit status of ``nima score``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="*", help="files or folders; sample photos by default")
    paths = [str(Path(image).expanduser()) for image in parser.parse_args().images]
    with tempfile.TemporaryDirectory(prefix="nima-demo-") as folder:
        if not paths:
            print("Photos: those that ship with scikit-image, and a blurred copy of each.")
            sample_photos(Path(folder))
            paths = [folder]
        print("Starting the embedded tritonserver on free loopback ports …", flush=True)
        try:
            with EmbeddedServer() as server:
                print(f"It answers at grpc {server.grpc_url}. Scoring:\n", flush=True)
                command = [sys.executable, "-m", "nima_client.cli.main", "score"]
                status = subprocess.run([*command, "--url", server.grpc_url, *paths]).returncode
        except (ServerError, ArtefactError) as error:
            print(error, file=sys.stderr)
            return 1
        print("\nStopped the server. Next: `make serve`, and `.venv/bin/nima score YOUR_PHOTOS`.")
    return status


if __name__ == "__main__":
    with stoppable("demo.py"):
        sys.exit(main())
