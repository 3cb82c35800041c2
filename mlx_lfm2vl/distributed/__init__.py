"""Several processes, on one machine or more, that `mlx.launch` has started.

In: the environment of a rank. Out: MLX's group of the ranks; links of rank 0 and the others, which outlive a lost one.
"""
