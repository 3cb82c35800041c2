"""The console command `mlx-lfm2vl`, also as `python -m mlx_lfm2vl`."""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """As `cli.main`; what it needs is imported here, so that Ctrl-C shows no traceback meanwhile either."""
    try:
        from .cli import main as run

        return run(argv)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
