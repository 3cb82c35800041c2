"""How this machine does: what it is, and how far its numbers are from the reference's.

In go nothing but this machine and the frozen numbers in data/; out comes a `Report`. Nothing is printed.
"""
