"""A model that lives in an app: requests come in from any thread, responses go out as they come.

One thread steps a scheduler and owns every MLX call; others read pictures and texts, and end requests that were
cancelled. The only folder with threads of its own.
"""
