"""The accuracy of models on questions whose answers are known.

In: rows of questions with what is accepted, or a benchmark's files; answers. Out: scores, with their intervals.
"""
