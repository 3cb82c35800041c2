"""The networks in MLX. Arrays go in and come out; names are those of transformers' modelling files.

Nothing here knows a device, a backend, a file, a text or a picture.
"""
