"""transformers' classes for these models: their names, arguments and results, over the rest of the package.

In: calls written for transformers, with arrays of torch, NumPy or MLX. Out: arrays of the kind that came in.
"""
