"""The case matrix: what users, strangers and broken disks hand in, and what must come out. A row is a case.

A table is a module of this folder with a list `ROWS` of `row.Row`; test_matrix.py finds the tables and runs every row,
so adding a table is adding a file, and adding a case is adding a row. Of a row:

    Row("a text with a picture's name",                       # unique in its table
        lambda bench: load_array(bench.write("a.png", b"text")),   # does it, with what `bench.Bench` offers
        Refused(ImageError, "a.png", "not a picture", "PNG"))      # the outcome: where, what, and the way out

The outcomes are in row.py: `Gives` (an exact value, arrays to the last bit), `Refused` (the very class of the package's
error, one line that names the thing, what is wrong with it and the way out), `Exits` (the same of a command: exit code
2, one line on stderr, nothing on stdout), `Answers` (a command that succeeds). Beyond its outcome no row may hang,
leave files open or print a traceback. Rows are quick: the small checkpoint (`bench.model()`), small files, no sleeping.
`pytest tests/matrix -k "urls and redirect"` runs the rows of table `urls` with "redirect" in their names.
"""
