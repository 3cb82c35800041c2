"""Whether this machine computes the right numbers.

In: this machine, and the reference's frozen numbers in data/. Out: a `Report`; nothing is printed.
"""
