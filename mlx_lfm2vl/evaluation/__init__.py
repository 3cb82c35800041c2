"""How often a model is right.

In: rows of questions with what is accepted, or a benchmark's files; answers. Out: scores, with their intervals.
"""
