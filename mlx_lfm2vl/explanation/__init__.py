"""Visual evidence: where in the pictures the model's attention lay while it wrote each token of an answer.

In: model, processor, a prompt and pictures. Out: an `Explanation`, with maps in the pictures' own coordinates.
"""
