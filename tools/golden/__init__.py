"""Reference numbers. Importing any part makes torchvision importable first."""

from .. import reference_shim  # noqa: F401
