"""Adapters: what a fine-tuning adds to the weights of a model.

In: a folder of PEFT or mlx-lm. Out: a model, or its tensors, with the adapter in them; a folder of PEFT.
"""
