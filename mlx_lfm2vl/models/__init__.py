"""The networks in MLX, named as in transformers. They know no device, backend, file, text or picture.

In: arrays: token ids, patches and grids, a cache. Out: arrays: hidden states, image tokens, logits.
"""
