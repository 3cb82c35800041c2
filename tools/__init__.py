"""Programs that made data of this repository, and measurements. README.md lists them."""
