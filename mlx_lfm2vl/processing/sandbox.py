"""jinja2's sandbox with limits: a template's text to something that renders. The only importer of `jinja2`.

The environment is that of Hugging Face: blocks trimmed, loop controls, `raise_exception`, `strftime_now`, `tojson` that
keeps order and characters, `{% generation %}` blocks. Templates are not trusted. They see plain data, the filters and
methods that are listed here, and nothing else of Python. Their work is metered (limits.py).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NamedTuple

import jinja2
from jinja2 import ext, meta, nodes, sandbox, utils, visitor
from jinja2.parser import Parser
from jinja2.runtime import Context

from ..errors import TemplateError, one_line
from . import limits
from .limits import Meter

MAX_SOURCE = 2**18  # characters of a template; the longest published ones have some ten thousand
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
_METER: ContextVar[Meter] = ContextVar("meter of the rendering")


class Rendered(NamedTuple):
    """A rendered conversation. `generation_spans`: (start, end) in characters of each `{% generation %}` block."""

    text: str
    generation_spans: tuple[tuple[int, int], ...] = ()


class Program(NamedTuple):
    """A compiled template. Safe to share between threads.

    `variables` are the names that it expects from outside, `literal_text` the text that it writes itself (parted by
    NUL).
    """

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
        meter.spans.append((meter["characters"], meter["characters"] + len(text)))
        return text


class _Metering(visitor.NodeTransformer):
    """Meters what makes values or takes time without a call: loops, macros, literals, comparisons, keys, parts, `~`."""

    def generic_visit(self, node: nodes.Node, *_: Any, **__: Any) -> nodes.Node:
        def filtered(value: nodes.Node, name: str) -> nodes.Filter:
            return nodes.Filter(value, name, [], [], None, None, lineno=node.lineno)

        super().generic_visit(node)
        if isinstance(node, (nodes.For, nodes.Macro)):
            literal = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
            node.body.insert(0, nodes.ExprStmt(filtered(nodes.Const(literal), "step"), lineno=node.lineno))
            if isinstance(node, nodes.For) and node.test is not None:  # which rounds are left out
                node.test = filtered(node.test, "made")
        elif isinstance(node, nodes.Getitem) and not isinstance(node.arg, (nodes.Const, nodes.Slice)):
            node.arg = filtered(node.arg, "made")  # a large key takes long to hash
        elif isinstance(node, nodes.Concat):
            return filtered(nodes.List(node.nodes, lineno=node.lineno), "join")
        elif (
            isinstance(node, (nodes.List, nodes.Tuple, nodes.Dict, nodes.Compare))
            or (isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice))
        ) and getattr(node, "ctx", "load") == "load":
            return filtered(node, "made")
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
        limits.foresee(operator, left, right)
        return _METER.get().made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # as jinja2 names them
        _METER.get().count("calls")
        method = getattr(__obj, "__wrapped__", __obj)  # str.format comes wrapped
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        limits.measure([args, kwargs])
        if owner is not None and type(owner).__module__ in ("builtins", "markupsafe"):
            if name not in METHODS:
                raise sandbox.SecurityError(f"the method {name!r} is not for templates")
            if name == "join":
                args = (list(args[0]),)
                limits.foresee(name, args[0], owner)
            else:
                limits.foresee(".format" if name == "format" else name, owner, *args, **kwargs)
        return _METER.get().made(super().call(__context, __obj, *args, **kwargs))


class _Namespace(utils.Namespace):
    """`namespace(...)` without names that begin with an underscore, as in the reference. It prints nothing that it
    holds."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # any name may be a keyword, `self` too
        self, *rest = args
        utils.Namespace.__init__(self)
        for name, value in dict(*rest, **kwargs).items():
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

    @functools.wraps(original)
    def run(*args: Any, **kwargs: Any) -> Any:
        meter = _METER.get()
        meter.count("calls")
        value, given = args[skipped], args[skipped + 1 :]
        if isinstance(value, str) and len(value) > limits.MAX_VALUES and name in ITEM_FILTERS:
            raise TemplateError(f"gives a text of more than {limits.MAX_VALUES:,} characters to {name!r}")
        if name == "join":
            value = list(value)
        limits.foresee(name, value, *given, **kwargs)
        return meter.made(original(*args[:skipped], value, *given, **kwargs))

    return run


@jinja2.pass_context
def _show(context: Context, value: Any) -> Any:
    """Every value that is printed comes through here."""
    characters, values, _ = limits.measure(value)
    _METER.get().count("printed characters", characters + 4 * values)
    return value


def _step(literal: int) -> None:
    """A loop round or macro call that prints so many characters of the template's own."""
    _METER.get().count("steps")
    _METER.get().count("printed characters", literal)


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
    characters, values, depth = limits.measure(value)
    width = len(indent) if isinstance(indent, str) else indent or 0
    limits.check_size(characters + values * (depth * width + max([2, *map(len, separators or ())])))
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
