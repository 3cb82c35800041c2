"""Grammars for one tokenizer: compiled once, kept, and followed by as many answers as there are."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from ..errors import ConstraintError
from ..processing.tokenizer import Tokenizer
from .finish import finished_at_exit
from .lark import check_no_end
from .limits import limits
from .matcher import Matcher
from .response_format import ResponseFormat

if TYPE_CHECKING:
    from llguidance import LLMatcher

KEPT = 64  # grammars of one tokenizer
_lock = threading.Lock()
_Compilers = dict[tuple[int, tuple[int, ...]], Callable[[ResponseFormat], "Grammar"]]  # by vocabulary and ends
_compilers: weakref.WeakKeyDictionary[Tokenizer, _Compilers] = weakref.WeakKeyDictionary()


class Grammar:
    """A form, compiled for a tokenizer. It does not change; `matcher` follows it."""

    def __init__(self, start: LLMatcher, vocabulary: int):
        self._start, self._vocabulary = start, vocabulary

    def matcher(self, tokens: Sequence[int] = ()) -> Matcher:
        """A `Matcher` behind these tokens of an answer."""
        made = Matcher(self._start.deep_copy(), self._vocabulary)
        for token in tokens:
            made.consume(token)
        return made

    def behind(self, tokens: Sequence[int]) -> Grammar:
        """The grammar of what may follow these tokens, which need not be those that it would force. Raises
        `ConstraintError` where they do not hold to the form."""
        start = self._start.deep_copy()
        if not start.consume_tokens(list(tokens)):
            raise ConstraintError("the answer so far does not hold to response_format; leave that out to go on with it")
        return Grammar(start, self._vocabulary)


def compile_grammar(tokenizer: Tokenizer, form: ResponseFormat, vocabulary: int, ends: Sequence[int]) -> Grammar:
    """The grammar of a form for a model.

    Args:
        tokenizer: the model's.
        form: what answers hold to.
        vocabulary: logits of the model.
        ends: ids of the tokens that end an answer.

    Raises:
        ConstraintError: where no answer can hold to the form.
    """
    known = tuple(end for end in ends if 0 <= end < vocabulary)
    with _lock:
        compilers = _compilers.setdefault(tokenizer, {})
        if (vocabulary, known) not in compilers:
            compilers[vocabulary, known] = _compiler(tokenizer, vocabulary, known)
        compiled = compilers[vocabulary, known]
    return compiled(form)


def _compiler(tokenizer: Tokenizer, vocabulary: int, ends: Sequence[int]) -> Callable[[ResponseFormat], Grammar]:
    """What compiles forms for a tokenizer, as llguidance knows it, and keeps their grammars."""
    from llguidance import LLMatcher, LLTokenizer

    try:
        known = LLTokenizer(_stated(tokenizer), vocabulary, list(ends) or None)
    except ValueError as error:
        raise ConstraintError(f"{tokenizer.where}: no answers of a form by this tokenizer: {error}") from None
    names = dict(zip(ends, tokenizer.convert_ids_to_tokens(list(ends)), strict=True))

    @finished_at_exit
    @lru_cache(maxsize=KEPT)
    def compiled(form: ResponseFormat) -> Grammar:
        if form.kind == "grammar":
            check_no_end(form.grammar_text, names)
        grammar = Grammar(LLMatcher(known, form.grammar_text, log_level=0, limits=limits()), vocabulary)
        first = grammar.matcher()
        first.mask()
        if first.error is not None:
            raise ConstraintError(f"response_format cannot be held: {first.error}")
        return grammar

    return compiled


def _stated(tokenizer: Tokenizer) -> str:
    """tokenizer.json, where every added token is special: none is ever taken for the text that it is written as."""
    stated = json.loads(tokenizer.backend.to_str())
    for token in stated["added_tokens"]:
        token["special"] = True
    return json.dumps(stated)
