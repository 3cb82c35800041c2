"""jinja2's sandbox with limits: a template's text to something that renders. The only importer of `jinja2`.

The environment is that of Hugging Face: blocks trimmed, loop controls, `raise_exception`, `strftime_now`, `tojson` that
keeps order and characters, `{% generation %}` blocks. Templates are not trusted. They see plain data, the filters and
methods that are named here, and nothing else of Python.

Their work is metered: steps, calls, sizes of values, processor time. A template of a few lines can double a text forty
times. So each value is measured when it is made, and what can make much of little is refused beforehand (`foresee`). A
list or object is measured as the tree that it prints as: an inner list that stands in it twice counts twice.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, NamedTuple

import jinja2
from jinja2 import ext, meta, nodes, sandbox, utils, visitor
from jinja2.parser import Parser
from jinja2.runtime import Context

from ..errors import TemplateError, one_line

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
MAX_SOURCE = 2**18  # characters of a template; the longest published ones have some ten thousand
MAX_SECONDS = 10.0  # of processor time
MAX_CHARACTERS = 16_000_000  # of a text, and of all texts in a list or object
MAX_VALUES = 1_000_000  # of a list or object, those of inner ones included
MAX_DEPTH = 256  # of lists and objects in each other; Python hashes a tuple on the stack
MAX_BITS = 20_000  # of a whole number
TOTALS = {
    "steps": 200_000,  # loop rounds and macro calls
    "calls": 500_000,  # of filters, tests, functions and methods; values that a filter yields
    "characters": MAX_CHARACTERS,  # of the result
    "printed characters": 4 * MAX_CHARACTERS,  # of blocks and macros too
    "made characters": 16 * MAX_CHARACTERS,  # all may be kept
    "made values": 16 * MAX_VALUES,
}
CONTAINERS: Any = (list, tuple, dict, MappingProxyType, *map(type, ({}.keys(), {}.values(), {}.items())))
_VALUE, _BIT = MAX_CHARACTERS // MAX_VALUES, MAX_CHARACTERS // MAX_BITS  # weights in characters


@dataclass
class Meter:
    """The work of one rendering. `spans`: the places of `{% generation %}` blocks in its result."""

    done: Counter[str] = field(default_factory=Counter)
    started: float = field(default_factory=time.thread_time)
    spans: list[tuple[int, int]] = field(default_factory=list)

    def count(self, what: str, amount: int = 1) -> None:
        """Adds to one of `TOTALS`, and looks at the clock."""
        self.done[what] += amount
        if self.done[what] > TOTALS[what]:
            raise TemplateError(f"takes more than {TOTALS[what]:,} {what}; it may never end")
        if time.thread_time() - self.started > MAX_SECONDS:
            raise TemplateError(f"takes more than {MAX_SECONDS:g} seconds; it may never end")

    def made(self, value: Any) -> Any:
        """Measures a new value. The values of an iterator are measured as they come."""
        if isinstance(value, Iterator):
            return self._each(value)
        amount = len(value) if isinstance(value, (str, CONTAINERS)) else 1
        self.count("made characters" if isinstance(value, str) else "made values", amount)
        measure(value)
        return value

    def _each(self, values: Iterator[Any]) -> Iterator[Any]:
        for value in values:
            self.count("calls")
            yield self.made(value)


def measure(value: Any) -> tuple[int, int, int]:
    """About how many characters a value prints as, its values and their depth, counted as the tree that it prints as.
    Raises `TemplateError` for too large a one."""
    characters = values = depth = 0
    level = [value]
    while level:
        values, depth = values + len(level), depth + 1
        inner: list[Any] = []
        for one in level:
            if isinstance(one, str):
                characters += len(one)
            elif isinstance(one, int):
                characters += one.bit_length() // 3
                if one.bit_length() > MAX_BITS:
                    raise TemplateError(f"makes a number of more than {MAX_BITS:,} bits")
            elif isinstance(one, (dict, MappingProxyType)):
                inner += one.keys()
                inner += one.values()
            elif isinstance(one, CONTAINERS):
                inner += one
            if values + len(inner) > MAX_VALUES:
                raise TemplateError(f"makes a list or object of more than {MAX_VALUES:,} values")
        if depth > MAX_DEPTH:
            raise TemplateError(f"makes more than {MAX_DEPTH} lists or objects in each other")
        level = inner
    check_size(characters)
    return characters + 4 * values, values, depth


def check_size(characters: int) -> None:
    if characters > MAX_CHARACTERS:
        raise TemplateError(f"makes a value larger than {MAX_CHARACTERS:,}")


def foresee(name: str, /, *arguments: Any, **named: Any) -> None:
    """Refuses an operator, filter or method whose result would be too large, before it is made."""
    if name in GROWTH:
        check_size(GROWTH[name](*arguments, **named))


def _repeated(left: Any, right: Any) -> int:
    items, times = (right, left) if isinstance(left, int) else (left, right)
    if not isinstance(items, (str, list, tuple)) or not isinstance(times, int):
        return 0
    return len(items) * times * (1 if isinstance(items, str) else _VALUE)


def _formatted(form: Any, /, *values: Any, **named: Any) -> int:
    """Characters of `form % values` and `form.format(values)`. Widths stand in the form, or come from the values."""
    form, given = str(form), [*values, *named.values()]
    widths = [int(digits) for digits in re.findall(r"\d+", form)]
    if re.search(r"\*|\{[^{}]*\{", form):
        widths += [abs(value) for value in given if isinstance(value, int)]
    most = max([400, *widths, *(measure(value)[0] for value in given)])
    return len(form) + (form.count("%") + form.count("{")) * most


def _formatted_by_braces(form: str, /, *values: Any, **named: Any) -> int:
    if re.search(r"\{[^{}:!]*[.\[]", form):
        raise TemplateError("formats an attribute or item of a value; a field may only name the value")
    return _formatted(form, *values, **named)


def _replaced(text: Any, old: Any, new: Any, count: Any = None) -> int:
    text, old, new = str(text), str(old), str(new)
    return len(text) + (text.count(old) if old else len(text) + 1) * len(new)


GROWTH: dict[str, Callable[..., int]] = {  # operators, filters and methods: the characters of a result at most
    "*": _repeated,
    "**": lambda left, right: _BIT * left.bit_length() * abs(right) if isinstance(left, int) else 0,
    "%": lambda left, right: (
        _formatted(left, *(right if isinstance(right, tuple) else [right])) if isinstance(left, str) else 0
    ),
    "batch": lambda items, linecount, fill_with=None: _VALUE * linecount,
    "format": _formatted,
    ".format": _formatted_by_braces,
    "indent": lambda text, width=4, *_, **__: (len(str(text)) + 1) * (len(width) if isinstance(width, str) else width),
    "join": lambda items, d="", attribute=None: measure(items)[0] + len(items) * measure(d)[0],
    "replace": _replaced,
    "round": lambda value, precision=0, method="common": _VALUE * abs(precision),
    "slice": lambda items, slices, fill_with=None: _VALUE * slices,
    "sum": lambda items, attribute=None, start=0: 0 if isinstance(start, (int, float)) else MAX_CHARACTERS + 1,
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), lambda text, width=80, *_, **__: width),
    **dict.fromkeys(
        ("rsplit", "split", "splitlines"),
        lambda text, sep=None, *_, **__: _VALUE * (text.count(sep) if isinstance(sep, str) and sep else len(text)),
    ),
}
_METER: ContextVar[Meter] = ContextVar("meter of the rendering")


class Rendered(NamedTuple):
    """A rendered conversation. `generation_spans`: (start, end) in characters of each `{% generation %}` block."""

    text: str
    generation_spans: tuple[tuple[int, int], ...] = ()


class Program(NamedTuple):
    """A compiled template. Safe to share between threads. `variables` are the names that it expects from outside,
    `literal_text` the text that it writes itself (parted by NUL)."""

    template: jinja2.Template
    variables: frozenset[str]
    literal_text: str

    def render(self, variables: Mapping[str, Any]) -> Rendered:
        """Raises `TemplateError`, with the template's own words where it refuses."""
        meter, pieces = Meter(), []
        token = _METER.set(meter)
        try:
            for piece in self.template.generate(**variables):
                meter.count("characters", len(piece))
                pieces.append(piece)
        except TemplateError:
            raise
        except jinja2.TemplateError as error:
            raise TemplateError(_line(error)) from None
        except Exception as error:  # a template computes on whatever the conversation holds
            raise TemplateError(f"cannot render this conversation ({type(error).__name__}: {_line(error)})") from None
        finally:
            _METER.reset(token)
        return Rendered("".join(pieces), tuple(meter.spans))


class _Generation(ext.Extension):
    """`{% generation %} ... {% endgeneration %}`: renders its body and notes where it stands in the text."""

    tags = {"generation"}  # noqa: RUF012  # jinja2's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_note"), [], [], body).set_lineno(lineno)

    def _note(self, caller: Callable[[], str]) -> str:
        text, meter = caller(), _METER.get()
        start = meter.done["characters"]
        meter.spans.append((start, start + len(text)))
        return text


class _Metering(visitor.NodeTransformer):
    """Meters what makes values or takes time without a call: loops, macros, literals, comparisons, keys, parts, `~`."""

    def generic_visit(self, node: nodes.Node, *_: Any, **__: Any) -> nodes.Node:
        def filtered(value: nodes.Node, name: str) -> nodes.Filter:
            return nodes.Filter(value, name, [], [], None, None, lineno=node.lineno)

        super().generic_visit(node)
        match node:
            case nodes.For() | nodes.Macro():
                literal = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
                node.body.insert(0, nodes.ExprStmt(filtered(nodes.Const(literal), "step"), lineno=node.lineno))
                if isinstance(node, nodes.For) and node.test is not None:  # which rounds are left out
                    node.test = filtered(node.test, "made")
            case nodes.Concat():
                return filtered(nodes.List(node.nodes, lineno=node.lineno), "join")
            case nodes.Getitem(arg=arg) if not isinstance(arg, (nodes.Const, nodes.Slice)):
                node.arg = filtered(arg, "made")  # a large key takes long to hash
            case nodes.Getitem(arg=nodes.Slice()) | nodes.List() | nodes.Tuple() | nodes.Dict() | nodes.Compare():
                return filtered(node, "made") if getattr(node, "ctx", "load") == "load" else node
        return node


class _Sandbox(sandbox.ImmutableSandboxedEnvironment):
    """jinja2's sandbox, metered."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        extensions = [_Generation, ext.loopcontrols]
        super().__init__(trim_blocks=True, lstrip_blocks=True, finalize=_show, extensions=extensions)
        filters = {**self.filters, "tojson": tojson}
        self.filters = {name: _metered(name, filters[name]) for name in TEXT_FILTERS + ITEM_FILTERS}
        self.filters.update(step=_step, made=lambda value: _METER.get().made(value))
        tests: Mapping[str, Any] = self.tests
        self.tests = {name: _metered(name, test) for name, test in tests.items()}
        del self.globals["lipsum"]
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now, namespace=_Namespace)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        foresee(operator, left, right)
        return _METER.get().made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # as jinja2 names them
        _METER.get().count("calls")
        method = getattr(__obj, "__wrapped__", __obj)  # str.format comes wrapped
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        measure([args, kwargs])
        if owner is not None and type(owner).__module__ in ("builtins", "markupsafe"):
            if name not in METHODS:
                raise sandbox.SecurityError(f"the method {name!r} is not for templates")
            if name == "join":
                args = (list(args[0]),)
                foresee(name, args[0], owner)
            else:
                foresee(".format" if name == "format" else name, owner, *args, **kwargs)
        return _METER.get().made(super().call(__context, __obj, *args, **kwargs))


class _Namespace(utils.Namespace):
    """`namespace(...)` without names that begin with an underscore, as in the reference, which prints no contents."""

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise sandbox.SecurityError(f"a namespace cannot hold {name!r}")
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _metered(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test that counts as a call and is measured before and after. While a template is compiled there is no
    meter, so that jinja2 computes nothing beforehand."""
    skipped = int(hasattr(original, "jinja_pass_arg"))  # a context or the like comes first
    foreseen = GROWTH.get(name)

    @functools.wraps(original)
    def run(*args: Any, **kwargs: Any) -> Any:
        meter = _METER.get()
        meter.count("calls")
        value, given = args[skipped], args[skipped + 1 :]
        if isinstance(value, str) and len(value) > MAX_VALUES and name in ITEM_FILTERS:
            raise TemplateError(f"gives a text of more than {MAX_VALUES:,} characters to {name!r}")
        if name == "join":
            value = list(value)
        if foreseen is not None:
            check_size(foreseen(value, *given, **kwargs))
        return meter.made(original(*args[:skipped], value, *given, **kwargs))

    return run


@jinja2.pass_context  # which keeps jinja2 from printing constants while it compiles
def _show(context: Context, value: Any) -> Any:
    """Every value that is printed comes through here."""
    _METER.get().count("printed characters", measure(value)[0])
    return value


def _step(literal: int) -> None:
    """A loop round or macro call that prints so many characters of the template's own."""
    meter = _METER.get()
    meter.count("steps")
    meter.count("printed characters", literal)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    if len(format) > 1000:
        raise TemplateError("asks for a date in more than 1,000 characters")
    return datetime.now().strftime(format)


def tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as chat templates expect it: order and characters kept, nothing escaped for HTML, ", " and ": " between."""
    printed, values, depth = measure(value)
    width = len(indent) if isinstance(indent, str) else indent or 0
    check_size(printed + values * (depth * width + max([2, *map(len, separators or ())])))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


_SANDBOX = _Sandbox()


@functools.lru_cache(maxsize=32)
def compiled(source: str) -> Program:
    """Raises `TemplateError` for what is no template."""
    if len(source) > MAX_SOURCE:
        raise TemplateError(f"has more than {MAX_SOURCE:,} characters")
    try:
        tree = _SANDBOX.parse(source)
        names = meta.find_undeclared_variables(tree)
        constants = [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
        literals = [*(node.data for node in tree.find_all(nodes.TemplateData)), *constants]
        metered = _Metering().visit(tree)
        metered.set_environment(_SANDBOX)
        return Program(_SANDBOX.from_string(metered), frozenset(names), "\0".join(literals))
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"line {error.lineno}: {_line(error)}") from None
    except (jinja2.TemplateError, RecursionError, ValueError, SyntaxError, MemoryError) as error:
        raise TemplateError(f"cannot be compiled ({type(error).__name__}: {_line(error)})") from None


def _line(error: BaseException) -> str:
    """The error in one line."""
    return one_line(str(error)[:1000])[:1000]
