"""A checkpoint of any layout to a complete MLX folder: planned, streamed, checked, measured."""
