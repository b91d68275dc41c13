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

from sample_photos import write_pairs

from nima_build.metadata import ArtefactError
from nima_build.server import EmbeddedServer, ServerError
from nima_client._signals import stoppable


def main() -> int:
    """Run the demo; returns the exit status of ``nima score``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="*", help="files or folders; sample photos by default")
    paths = [str(Path(image).expanduser()) for image in parser.parse_args().images]
    with tempfile.TemporaryDirectory(prefix="nima-demo-") as folder:
        if not paths:
            print("Photos: those that ship with scikit-image, and a blurred copy of each.")
            write_pairs(Path(folder))
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
