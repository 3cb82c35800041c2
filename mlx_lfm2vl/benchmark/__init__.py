"""The speed of a model on this machine, and where the time goes.

In: a model, sizes of pictures, sizes of batches. Out: a report of times, speeds and memory.
"""
