"""From files to a model and back: names, safetensors, quantisation, memory, loading, saving.

In: a folder of any published layout, or a model. Out: the model, evaluated; or a folder's files.
"""
