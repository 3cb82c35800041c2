"""`python convert.py ...` is `mlx-lfm2vl convert ...`."""

import sys

from mlx_lfm2vl.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
