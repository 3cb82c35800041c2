"""Measurements: this package beside other programs, and against itself."""
