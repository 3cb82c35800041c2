"""Fuzzing of the entrances through which strangers' bytes come: mutated real files, and what may come of them.

An entrance is a module of this folder with an `ENTRANCE` (entrance.py); adding one is adding a file. From tests/:

    python -m fuzz pictures --executions 100000     # goes on where it was stopped; state and findings in build/fuzz
    python -m fuzz pictures --only 4711             # one execution again, with its traceback

An execution is determined by the entrance's name and its number. Executions run in a child process with limited
memory, so that crashes and hangs are findings too. test_fuzz.py runs the first few hundred of every entrance in
`make test`, and 100,000 in `make soak`. A finding becomes a row of the case matrix or a test before it is mended.
"""
