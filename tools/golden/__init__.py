"""The parts of make_golden.py. Importing any of them makes torchvision importable first."""

import reference_shim  # noqa: F401
