"""``python -m nima_build.gpu_check``."""

import sys

from nima_build.gpu_check import main

if __name__ == "__main__":
    sys.exit(main())
