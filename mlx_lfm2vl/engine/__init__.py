"""A model that lives in an app: one thread steps a scheduler and owns every MLX call; others read and end requests.

In: requests, from any thread. Out: responses as they come, to any thread or a sink.
"""
