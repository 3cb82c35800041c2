"""From messages and pictures to the arrays that a model takes, and from ids to text; NumPy and Pillow, no MLX.

In: messages, pictures from anywhere, tokenizer and template files. Out: ids, patches, grids; text.
"""
