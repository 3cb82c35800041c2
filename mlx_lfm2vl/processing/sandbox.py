"""jinja2's sandbox with bounds: a template's text to something that renders. The only importer of `jinja2`.

The environment is that of Hugging Face: blocks trimmed, loop controls, `raise_exception`, `strftime_now`, `tojson` that
keeps order and characters, `{% generation %}` blocks. Templates are not trusted: they see plain data only, nothing of
Python, and are measured as they work (bounds.py). A few filters of jinja2's that cannot be measured are left out.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils
import jinja2.visitor

from ..errors import TemplateError
from . import bounds
from .bounds import Work

MAX_SOURCE = 2**18  # characters of a template; the longest published ones have some ten thousand
_WORK: ContextVar[Work] = ContextVar("rendering")


class Program:
    """A compiled template. Safe to share between threads.

    `variables` are the names that it expects from outside, `literal_text` the text that it writes itself (parted by
    NUL). Raises `TemplateError` for what is no template.
    """

    def __init__(self, source: str):
        if len(source) > MAX_SOURCE:
            raise TemplateError(f"has more than {MAX_SOURCE:,} characters")
        try:
            self._template, self.variables, self.literal_text = _compile(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"line {error.lineno}: {line(error)}") from None
        except (jinja2.TemplateError, RecursionError, ValueError, SyntaxError, MemoryError) as error:
            raise TemplateError(f"cannot be compiled ({line(error)})") from None

    def render(self, variables: Mapping[str, Any]) -> tuple[str, tuple[tuple[int, int], ...]]:
        """The text, and where in it `{% generation %}` blocks stand. Raises `TemplateError`, with the template's own
        words where it refuses."""
        work = Work()
        token = _WORK.set(work)
        try:
            for piece in self._template.generate(**variables):
                work.add(piece)
        except TemplateError:
            raise
        except jinja2.TemplateError as error:
            raise TemplateError(line(error)) from None
        except (RecursionError, MemoryError) as error:
            raise TemplateError(f"cannot be rendered ({type(error).__name__})") from None
        except Exception as error:  # a template computes on whatever the conversation holds
            raise TemplateError(f"cannot render this conversation ({line(error)})") from None
        finally:
            _WORK.reset(token)
        return "".join(work.pieces), tuple(work.spans)


class _Generation(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}`: renders its body and notes where it stands in the text."""

    tags = {"generation"}  # noqa: RUF012  # jinja2's own declaration

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_note"), [], [], body).set_lineno(lineno)

    def _note(self, caller: Callable[[], str]) -> str:
        work = _WORK.get()
        text = caller()
        work.spans.append((work.characters, work.characters + len(text)))
        return text


class _Measured(jinja2.visitor.NodeTransformer):
    """Puts the counting of steps into loops and macros, and a measure around what builds values without a call."""

    def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.Node:
        return self._counted(node)

    def visit_Macro(self, node: jinja2.nodes.Macro) -> jinja2.nodes.Node:
        return self._counted(node)

    def _counted(self, node: jinja2.nodes.For | jinja2.nodes.Macro) -> jinja2.nodes.Node:
        literal = sum(len(data.data) for data in node.find_all(jinja2.nodes.TemplateData))
        self.generic_visit(node)
        step = jinja2.nodes.Filter(jinja2.nodes.Const(literal), "step", [], [], None, None)
        node.body.insert(0, jinja2.nodes.ExprStmt(step).set_lineno(node.lineno))
        return node

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Node:
        self.generic_visit(node)
        parts = jinja2.nodes.List(node.nodes, lineno=node.lineno)
        return jinja2.nodes.Filter(parts, "concat", [], [], None, None, lineno=node.lineno)

    def _literal(self, node: jinja2.nodes.Expr) -> jinja2.nodes.Node:
        self.generic_visit(node)
        if getattr(node, "ctx", "load") != "load":
            return node
        return jinja2.nodes.Filter(node, "measured", [], [], None, None, lineno=node.lineno)

    def visit_Compare(self, node: jinja2.nodes.Compare) -> jinja2.nodes.Node:
        """Comparing takes as long as its sides are large."""
        self.generic_visit(node)
        sides: list[Any] = [node, *node.ops]
        for side in sides:
            side.expr = jinja2.nodes.Filter(side.expr, "weighed", [], [], None, None, lineno=node.lineno)
        return node

    visit_List = visit_Tuple = visit_Dict = _literal


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """jinja2's sandbox, measured."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree: jinja2.nodes.Template = _Measured().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in bounds.UNSAFE_METHODS and super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        bounds.check_operator(operator, left, right)
        return _WORK.get().made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # as jinja2 names them
        _WORK.get().call()
        method = getattr(__obj, "__wrapped__", __obj)  # str.format comes wrapped
        name = getattr(method, "__name__", "")
        bounds.check_method(getattr(method, "__self__", None), name, (*args, *kwargs.values()))
        return _WORK.get().made(super().call(__context, __obj, *args, **kwargs))


class _Dict:
    """`dict(...)` without the class's attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
    """`namespace(...)` that takes no names with a leading underscore, and prints nothing of what it holds."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, rest = args[0], args[1:]
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _Namespace._check(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _Namespace._check(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.sandbox.SecurityError(f"a namespace cannot hold {name!r}")


# Filters take the context so that jinja2 never takes one of a constant for a constant, at compile time and unmeasured.


@jinja2.pass_context
def _step(context: jinja2.runtime.Context, literal: int) -> None:
    _WORK.get().step(literal)


@jinja2.pass_context
def _concat(context: jinja2.runtime.Context, parts: list[Any]) -> str:
    """`~`."""
    bounds.check_join(parts, "")
    text: str = _WORK.get().made("".join(map(str, parts)))
    return text


@jinja2.pass_context
def _measured(context: jinja2.runtime.Context, value: Any) -> Any:
    return _WORK.get().made(value)


@jinja2.pass_context
def _weighed(context: jinja2.runtime.Context, value: Any) -> Any:
    return bounds.kept(value)


@jinja2.pass_context
def _show(context: jinja2.runtime.Context, value: Any) -> Any:
    """Every value that is printed comes through here."""
    return _WORK.get().show(value)


def _bounded(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is measured before and after."""
    wants = getattr(original, "jinja_pass_arg", None)
    places = {
        "context": lambda c: (c,),
        "eval_context": lambda c: (c.eval_ctx,),
        "environment": lambda c: (c.environment,),
    }
    given: Callable[[Any], tuple[Any, ...]] = places[wants.name] if wants else lambda _: ()
    check = bounds.FILTERS.get(name)

    @jinja2.pass_context
    def run(context: jinja2.runtime.Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        _WORK.get().call()
        if name == "join":
            value = list(value)
            bounds.check_join(value, args[0] if args else kwargs.get("d", ""))
        elif isinstance(value, (int, *bounds.CONTAINERS)):
            bounds.kept(value)
        if check is not None:
            check(value, *args, **kwargs)
        return _WORK.get().made(original(*given(context), value, *args, **kwargs))

    return run


def _counted(original: Callable[..., Any]) -> Callable[..., Any]:
    """A test (`is`, `select('in', ...)`) that counts as a call, on values that are not too large to be compared."""
    wants = getattr(original, "jinja_pass_arg", None)

    @functools.wraps(original)  # which keeps what it wants to be passed
    def run(*args: Any, **kwargs: Any) -> Any:
        _WORK.get().call()
        for value in args[1:] if wants else args:
            bounds.kept(value)
        return original(*args, **kwargs)

    return run


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    if len(format) > 1000:
        raise TemplateError("asks for a date in more than 1,000 characters")
    return datetime.now().strftime(format)


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as chat templates expect it: order and characters kept, nothing escaped for HTML, ", " and ": " between."""
    width = len(indent) if isinstance(indent, str) else indent or 0
    nodes, characters, depth = bounds.measure(value)
    widest = max([2, *map(len, separators or ())])
    if width > 100 or characters + nodes * (depth * width + widest) > bounds.MAX_CHARACTERS:
        raise TemplateError(f"makes JSON of more than {bounds.MAX_CHARACTERS:,} characters")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@functools.lru_cache(maxsize=32)
def _compile(source: str) -> tuple[jinja2.Template, frozenset[str], str]:
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, finalize=_show, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    filters = {**environment.filters, "tojson": tojson}
    environment.filters.clear()
    environment.filters.update(
        {name: _bounded(name, filters[name]) for name in filters if name not in bounds.LEFT_OUT},
        step=_step,
        concat=_concat,
        measured=_measured,
        weighed=_weighed,
    )
    tests: dict[str, Any] = environment.tests
    tests.update({name: _counted(test) for name, test in tests.items()})
    del environment.globals["lipsum"]
    environment.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_Dict(), namespace=_Namespace
    )
    tree = environment.parse(source)
    constants = [node.value for node in tree.find_all(jinja2.nodes.Const) if isinstance(node.value, str)]
    literals = [*(node.data for node in tree.find_all(jinja2.nodes.TemplateData)), *constants]
    names = jinja2.meta.find_undeclared_variables(tree)
    return environment.from_string(source), frozenset(names), "\0".join(literals)


def line(error: BaseException) -> str:
    """The error in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 1000 else f"{text[:1000]} ..."
