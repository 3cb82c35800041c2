"""Added tokens that stand beside tokenizer.json: in added_tokens.json, or in tokenizer_config.json's own table.

They count at the ids that are stated there, as in the reference. What tokenizer.json has itself is left as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import read_json, shown
from ..errors import TokenizerError

MAX_ID = 2**24
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def stated_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, tuple[int, dict[str, bool]]]:
    """Tokens to their ids and flags (`FLAGS`, those that are stated).

    Args:
        folder: where added_tokens.json may be.
        config: the content of tokenizer_config.json.

    Raises:
        ConfigError, TokenizerError: a file is damaged, or an entry is no token with an id.
    """
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


def with_ids(text: str, ids: Mapping[str, int], where: str) -> str:
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
