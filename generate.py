"""`python generate.py ...` is `mlx-lfm2vl generate ...`."""

import sys

from mlx_lfm2vl.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
