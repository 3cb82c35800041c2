"""From messages and pictures to the arrays that the model takes: decoding, tiling, patches, chat template, tokens.

NumPy and Pillow only; nothing here knows MLX. The submodules, each importing only those before it: transfer, fetch,
pixels, formats, source, geometry, batch, resize, image, control, tokens, tokenizer, conversation, template, prompt,
processor.
"""
