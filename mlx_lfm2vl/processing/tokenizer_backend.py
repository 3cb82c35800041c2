"""The `tokenizers` library, and the files that its tokenizers are read from. The only importer of `tokenizers`.

Added tokens stand in tokenizer.json, and beside it in added_tokens.json or in tokenizer_config.json's own table. Those
beside it count at the ids that are stated there, as in the reference; what tokenizer.json has itself is left as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Encoding
from tokenizers.decoders import DecodeStream
from tokenizers.pre_tokenizers import ByteLevel

from ..config import read_json, read_text, shown
from ..config.files import AGAIN
from ..errors import ConfigError, TokenizerError, first_line
from .tokenizer_checks import check_normalizer, check_patterns, check_post_processor

__all__ = ["Backend", "DecodeStream", "Encoding", "add_special", "check", "check_panic", "panics", "read"]

Backend = tokenizers.Tokenizer
MAX_BYTES = 128 * 2**20  # of tokenizer.json; one of 128,000 tokens has a tenth of that
MAX_ADDED = 256  # characters of an added token; the longest published ones have some 30
MAX_ID = 2**24
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def read(folder: Path) -> tuple[Backend, dict[str, Any], Path]:
    """The tokenizer of a folder with all added tokens, the content of special_tokens_map.json and
    tokenizer_config.json, which wins, and the path of tokenizer.json. Raises `TokenizerError`."""
    path, config = folder / "tokenizer.json", dict[str, Any]()
    try:
        text = read_text(path, MAX_BYTES)
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            if (folder / name).is_file():
                data = read_json(folder / name)
                config.update({key: value for key, value in data.items() if value is not None})
        stated = _stated_tokens(folder, config)
    except ConfigError as error:
        raise TokenizerError(str(error)) from None
    return _with_stated_tokens(text, path, stated), config, path


def check(backend: Backend, where: str) -> None:
    """Raises `TokenizerError` for what is no byte-level BPE, or a file whose steps could not end, could panic, or lose
    text."""
    model = backend.model
    kind, decoder = type(model).__name__, type(backend.decoder).__name__
    if (kind, decoder) != ("BPE", "ByteLevel"):
        raise TokenizerError(f"{where}: model {kind} with decoder {decoder}; LFM2 tokenizers are byte-level BPE")

    def state(step: Any) -> Any:
        return None if step is None else json.loads(step.__getstate__())

    try:
        check_normalizer(state(backend.normalizer))
        check_patterns(state(backend.pre_tokenizer))
        check_post_processor(state(backend.post_processor), lambda t: backend.token_to_id(t) is not None)
        added = [token.content for token in backend.get_added_tokens_decoder().values()]
        if longest := max((token for token in added if len(token) > MAX_ADDED), key=len, default=None):
            raise ValueError(f"an added token has {len(longest):,} characters")
        for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
            if getattr(model, name):
                raise ValueError(f"{name} is {shown(getattr(model, name))}")
        if lost := [character for character in ByteLevel.alphabet() if model.token_to_id(character) is None]:
            raise ValueError(f"{len(lost)} of the 256 bytes have no token, {lost[0]!r} for one")
    except ValueError as error:
        raise TokenizerError(f"{where}: {error}; no LFM2 tokenizer is so, {AGAIN}") from None


def add_special(backend: Backend, special: Iterable[str]) -> None:
    """Makes those tokens special that the backend has."""
    known = [token for token in dict.fromkeys(special) if backend.token_to_id(token) is not None]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in known])


def _parsed(text: str, path: Path) -> Backend:
    try:
        with panics(f"{path}: not a tokenizer file"):
            return Backend.from_str(text)
    except TokenizerError:
        raise
    except Exception as error:  # the Rust library raises plain Exception for any damage
        raise TokenizerError(f"{path}: not a tokenizer file ({first_line(error)}); {AGAIN}") from None


def _with_stated_tokens(text: str, path: Path, stated: Mapping[str, tuple[int, Mapping[str, bool]]]) -> Backend:
    """The tokenizer of `text` with the added tokens that are stated beside it."""
    backend = _parsed(text, path)
    added = {token.content: id for id, token in backend.get_added_tokens_decoder().items()}
    new = {content: flags for content, (_, flags) in stated.items() if content not in added}
    unknown = {content: stated[content][0] for content in new if backend.token_to_id(content) is None}
    if unknown and type(backend.model).__name__ == "BPE":
        # the library numbers new tokens itself; those that the vocabulary has keep their ids
        backend = _parsed(_with_ids(text, {**added, **unknown}, str(path)), path)
    for content, flags in new.items():
        add = backend.add_special_tokens if flags.get("special") else backend.add_tokens
        add([AddedToken(content, **flags)])
    return backend


@contextmanager
def panics(what: str) -> Iterator[None]:
    """A panic of the Rust library as a `TokenizerError`; it is no `Exception`, and would end a thread or an app."""
    try:
        yield
    except BaseException as error:
        check_panic(error, what)
        raise


def check_panic(error: BaseException, what: str) -> None:
    """Raises `TokenizerError`, which begins with `what`, for a panic of the Rust library."""
    if type(error).__name__ == "PanicException":
        raise TokenizerError(f"{what} (the tokenizers library gave up: {first_line(error)}); {AGAIN}") from None


def _stated_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, tuple[int, dict[str, bool]]]:
    """Tokens in added_tokens.json and tokenizer_config.json (`config`) to their ids and flags (`FLAGS`, those that are
    stated). Raises `ConfigError`, `TokenizerError`."""
    entries: list[tuple[str, Any, Any]] = []
    file, table = folder / "added_tokens.json", config.get("added_tokens_decoder")
    if file.is_file():
        entries += [(str(file), id, {"content": content}) for content, id in read_json(file).items()]
    if isinstance(table, Mapping):
        where = str(folder / "tokenizer_config.json")
        entries += [(where, int(id) if id.isdecimal() else id, token) for id, token in table.items()]
    tokens: dict[str, tuple[int, dict[str, bool]]] = {}
    for where, id, token in entries:
        content = token.get("content") if isinstance(token, Mapping) else token
        if not isinstance(content, str) or not content or type(id) is not int or not 0 <= id < MAX_ID:
            raise TokenizerError(f"{where}: {shown(content)} at {shown(id)} is no added token with an id")
        flags = token if isinstance(token, Mapping) else {}
        tokens[content] = (id, {name: flags[name] for name in FLAGS if isinstance(flags.get(name), bool)})
    return tokens


def _with_ids(text: str, ids: Mapping[str, int], where: str) -> str:
    """A tokenizer.json whose vocabulary has these tokens at these ids. Raises `TokenizerError` for an id that another
    token has."""
    data = json.loads(text)
    vocabulary = data["model"]["vocab"]
    taken = {id: token for token, id in vocabulary.items()}
    for token, id in ids.items():
        if taken.setdefault(id, token) != token:
            raise TokenizerError(f"{where}: {shown(token)} is to have the id {id}, which {shown(taken[id])} has")
        vocabulary[token] = id
    return json.dumps(data)
