"""`python -m mlx_lfm2vl` is the console command `mlx-lfm2vl`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
