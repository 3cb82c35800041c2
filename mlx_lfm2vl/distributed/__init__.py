"""Several processes, on one machine or more, that `mlx.launch` has started: MLX's group of them, and links beside it.

Imports no other part of the library but errors and threads' state: what the ranks do together is said by who uses it.
"""
