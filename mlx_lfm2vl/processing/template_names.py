"""Names of the filters of jinja2 and the methods of Python that a chat template may call."""

TEXT_FILTERS = str.split(
    "abs attr capitalize center count d default e escape filesizeformat first float forceescape format indent int"
    " items last length lower random replace round safe string tojson trim truncate upper"
)
ITEM_FILTERS = str.split(  # these cut a text into letters or words
    "batch dictsort groupby join list map max min reject rejectattr reverse select selectattr slice sort sum title"
    " unique urlencode wordcount"
)
METHODS = str.split(  # of Python's own types
    "capitalize casefold center copy count endswith find format get index isalnum isalpha isascii isdecimal isdigit"
    " isidentifier islower isnumeric isprintable isspace istitle isupper items join keys ljust lower lstrip"
    " partition removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines"
    " startswith strip swapcase title upper values zfill"
)
