"""Forms that an answer must hold to: a JSON schema, a regular expression, a choice of texts, a grammar.

In: what a caller asks for, and a tokenizer. Out: which tokens may come next, as NumPy bits. By llguidance; no MLX.
"""
