"""This package beside mlx-vlm and transformers, measured."""
