"""The checkpoint's tokenizer: text to ids, ids to text, and text that streams.

Gives what transformers gives for the same files (`TokenizersBackend`). Every LFM2 tokenizer is a byte-level BPE; others
are refused when loaded, so that decoding can be byte-exact everywhere. `clean_up_tokenization_spaces` is accepted and
has no effect, as transformers ignores it for BPE. Ids that the tokenizer does not know decode to nothing.
"""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..config import read_json, shown
from ..config.files import check_own, without, writing
from ..errors import TokenizerError
from . import tokenizer_backend
from .batch_feature import SIDES, BatchFeature, TextOptions
from .control_tokens import ControlTokens, control_tokens_of, pieces
from .tokenizer_backend import Backend, Encoding, check_panic, panics

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_OPTIONS = ("padding_side", "truncation_side", "chat_template", "model_max_length")  # of tokenizer_config.json
_CLASS = "PreTrainedTokenizerFast"
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
IMAGE_TOKENS = {  # of the family, for files that do not name them
    "image_token": "<image>",
    "image_start_token": "<|image_start|>",
    "image_end_token": "<|image_end|>",
    "image_thumbnail_token": "<|img_thumbnail|>",
}
_NESTED = ("extra_special_tokens", "model_specific_special_tokens")


class Tokenizer:
    """A byte-level BPE tokenizer with the named tokens of its model.

    `bos_token`, `eos_token`, `pad_token`, `unk_token` are strings or None, `image_token`, `image_start_token`,
    `image_end_token`, `image_thumbnail_token` always strings (the family's, if the files name none).
    """

    def __init__(self, backend: Backend, config: Mapping[str, Any] | None = None, where: str = "tokenizer"):
        """`config` is the content of tokenizer_config.json. Raises `TokenizerError`."""
        self.backend, self.config, self.where = backend, dict(config or {}), where
        self.folder: Path | None = None
        tokenizer_backend.check(backend, where)
        padding = backend.padding or {}
        backend.no_padding()
        backend.no_truncation()
        self._config_where = str(Path(where).with_name("tokenizer_config.json"))
        self.special_tokens_map = named_tokens(self.config, self._config_where, padding.get("pad_token"))
        self.padding_side = self._choice("padding_side", padding.get("direction") or "right")
        self.truncation_side = self._choice("truncation_side", "right")
        self.chat_template = self.config.get("chat_template")
        self.model_max_length = self._longest("model_max_length")
        listed = self.config.get("extra_special_tokens") or self.config.get("additional_special_tokens")
        unnamed = map(_text, listed) if isinstance(listed, list) else ()
        tokenizer_backend.add_special(backend, filter(None, [*self.special_tokens_map.values(), *unnamed]))
        added = backend.get_added_tokens_decoder()
        self._special_ids = frozenset(id for id, token in added.items() if token.special)
        self._control_tokens = control_tokens_of(frozenset(token.content for token in added.values()))
        self._as_read = self._state()

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Self:
        """Raises `TokenizerError`."""
        backend, config, path = tokenizer_backend.read(Path(folder))
        tokenizer = cls(backend, config, str(path))
        tokenizer.folder = Path(folder)
        return tokenizer

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Copies the files that the tokenizer was read from, or writes tokenizer.json and tokenizer_config.json. Named
        tokens, sides and a template that were set since are stated; where the files came from is not. Raises
        `OutputError`."""
        state = self._state()
        changed = {key: state.get(key) for key in self._as_read | state if state.get(key) != self._as_read.get(key)}
        tokens = {name: token for name, token in changed.items() if name not in _OPTIONS}
        with writing(folder) as target:
            if self.folder is None:
                (target / "tokenizer.json").write_text(self.backend.to_str(pretty=True), encoding="utf-8")
                _write(target / "tokenizer_config.json", {"tokenizer_class": _CLASS, **restated(self.config, changed)})
                return
            for name in FILES:
                source = self.folder / name
                if source.is_file() and source.resolve() != (target / name).resolve():
                    check_own(source)
                    shutil.copyfile(source, target / name)
            for name, others in (("tokenizer_config.json", changed), ("special_tokens_map.json", tokens)):
                there = (target / name).is_file()
                data = read_json(target / name) if there else {"tokenizer_class": _CLASS}
                if without(stated := restated(data, others)) != data and (there or name == "tokenizer_config.json"):
                    _write(target / name, stated)

    def _state(self) -> dict[str, Any]:
        """Fields that can be set, by their names in tokenizer_config.json."""
        return {**self.special_tokens_map, **{name: getattr(self, name) for name in _OPTIONS}}

    # Named tokens

    @functools.cached_property
    def image_tokens(self) -> dict[str, str]:
        """The tokens for pictures by name: image, start, end, thumbnail."""
        named = self.special_tokens_map
        thumbnail = named.get("image_thumbnail") or _text(self.config.get("image_thumbnail"))
        known = IMAGE_TOKENS | ({"image_thumbnail_token": thumbnail} if thumbnail else {})
        return {name: named.get(name) or token for name, token in known.items()}

    def _choice(self, name: str, default: str) -> str:
        value = self.config.get(name) or default
        if value not in SIDES:
            raise TokenizerError(f"{self._config_where}: {name} is {shown(value)}, expected 'left' or 'right'")
        return str(value)

    def _longest(self, name: str) -> int | None:
        value = self.config.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise TokenizerError(f"{self._config_where}: {name} is {shown(value)}, expected a number of tokens")
        return int(value)

    def __getattr__(self, name: str) -> Any:
        # bos_token, pad_token_id, image_token, image_start_token_id, ...
        if not name.startswith("_") and (name.endswith("_token") or name.endswith("_token_id")):
            base = name.removesuffix("_id")
            token = self.special_tokens_map.get(base) or self.image_tokens.get(base)
            if token is not None:
                return token if name == base else self.id_of(token, base)
            if base in NAMED_TOKENS:
                return None
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def id_of(self, token: str, name: str) -> int:
        """The id of the model's token of that name. Raises `TokenizerError` if there is none."""
        id = self.backend.token_to_id(token)
        if id is None:
            raise TokenizerError(
                f"{self.where}: has no token {shown(token)}, the model's {name}; the file is of another model"
            )
        return int(id)

    @property
    def all_special_ids(self) -> list[int]:
        """The ids that `skip_special_tokens` leaves out, in order."""
        return sorted(self._special_ids)

    @property
    def vocab_size(self) -> int:
        """Entries of the base vocabulary, without added tokens (as in the reference); `len()` counts all."""
        return int(self.backend.get_vocab_size(with_added_tokens=False))

    def __len__(self) -> int:
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def get_vocab(self) -> dict[str, int]:
        return dict(self.backend.get_vocab(with_added_tokens=True))

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token, or ids of several; the unknown token's id (None without one) where there is none."""
        if isinstance(tokens, str):
            id = self.backend.token_to_id(tokens)
            return self.unk_token_id if id is None else id
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or the tokens of several; None where there is none."""
        if isinstance(ids, (int, np.integer)):
            return self.backend.id_to_token(_ids(int(ids))[0])
        kept = (id for id in _ids(ids) if not (skip_special_tokens and id in self._special_ids))
        return [self.convert_ids_to_tokens(id) for id in kept]

    # Text to ids

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text. `add_special_tokens` adds what the file says (for most LFM2 tokenizers a BOS)."""
        return list(self.encode_batch([text], add_special_tokens)[0].ids)

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[Encoding]:
        """The `tokenizers` encodings (ids and character offsets) of several texts. Raises `TokenizerError`."""
        try:
            # one by one: the library's own batch starts threads, and then warns on stderr when the process forks
            return [self.backend.encode(text, add_special_tokens=add_special_tokens) for text in texts]
        except TypeError:
            for text in texts:
                if not isinstance(text, str):
                    raise TokenizerError(f"a text must be a string, got {type(text).__name__}") from None
                if half := next((c for c in text if "\ud800" <= c <= "\udfff"), None):
                    raise TokenizerError(
                        f"the text holds half a character (U+{ord(half):04X}), which is no Unicode"
                    ) from None
            raise
        except BaseException as error:
            check_panic(error, f"{self.where}: this text cannot be encoded")
            raise

    def encode_marked(self, text: str) -> list[int]:
        """Ids of a text in which marked control tokens (control_tokens.py) are plain text. Adds no special tokens."""
        ids: list[int] = []
        for piece, is_text in pieces(text, self._control_tokens):
            if not is_text:
                ids += self.encode_batch([piece], add_special_tokens=False)[0].ids
                continue
            before, model = self.backend.pre_tokenizer, self.backend.model
            with panics(f"{self.where}: {piece!r} cannot be encoded"):
                splits = [split for split, _ in before.pre_tokenize_str(piece)] if before else [piece]
                plain = [token.id for split in splits for token in model.tokenize(split)]
            if self.backend.token_to_id(piece) in plain:
                raise TokenizerError(f"{self.where}: {piece!r} cannot be written as plain text")
            ids += plain
        return ids

    def control_tokens(self, template_text: str) -> ControlTokens:
        """Finds the tokens that steer a model: the special ones, and added ones that `template_text` holds (or that the
        configuration lists as `chat_control_tokens`). Added white space is ordinary text."""
        added = self.backend.get_added_tokens_decoder().values()
        listed = self.config.get("chat_control_tokens")
        if listed is not None and not isinstance(listed, list):
            raise TokenizerError(
                f"{self._config_where}: chat_control_tokens is {shown(listed)}, expected a list of tokens"
            )
        if listed is None:
            listed = [t.content for t in added if t.content in template_text and not t.content.isspace()]
        return control_tokens_of(frozenset(t.content for t in added if t.special or t.content in listed))

    def tokenize(self, text: str, add_special_tokens: bool = False) -> list[str]:
        return list(self.encode_batch([text], add_special_tokens)[0].tokens)

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        padding_side: str | None = None,
        truncation: bool = False,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """ "input_ids" and "attention_mask" of a text or of several; keywords as in `TextOptions`.

        With `return_tensors="np"` int64 arrays (samples, length), else lists (of a single text, its own list).
        Raises `OptionError`, `TokenizerError`.
        """
        options = TextOptions(
            padding=padding,
            padding_side=padding_side,
            truncation=truncation,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            return_tensors=return_tensors,
        )
        texts = [text] if isinstance(text, str) else list(text)
        features = self.batch([list(each.ids) for each in self.encode_batch(texts, add_special_tokens)], options)
        if isinstance(text, str) and return_tensors is None:
            return BatchFeature({name: rows[0] for name, rows in features.items()})
        return features

    def batch(self, rows: Sequence[list[int]], options: TextOptions, masks: Sequence[list[int]] = ()) -> BatchFeature:
        """Rows of ids as `TextOptions.batch` makes them, with what this tokenizer pads with, and where."""
        return options.batch(rows, (self.padding_side, self.truncation_side), self._pad_id, masks)

    def _pad_id(self) -> int:
        id: int | None = self.pad_token_id
        if id is None:
            raise TokenizerError(f"{self.where}: names no pad_token, so texts cannot be padded to one length")
        return id

    # Ids to text

    def decode(
        self, token_ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> Any:
        """The text of ids (an int, a list, an array), or a list of texts for a list of lists or a 2-axis array.

        Bytes that are not UTF-8 become U+FFFD. Raises `TokenizerError` for what is not ids.
        """
        token_ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        if isinstance(token_ids, (list, tuple)) and token_ids and isinstance(token_ids[0], (list, tuple, np.ndarray)):
            return [self.decode(row, skip_special_tokens) for row in token_ids]
        ids = _ids(token_ids)
        with panics(f"{self.where}: these ids cannot be decoded"):
            return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def batch_decode(
        self, sequences: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> list[str]:
        """`decode` of each sequence, always as a list."""
        if not hasattr(sequences, "tolist"):
            sequences = [row.tolist() if hasattr(row, "tolist") else row for row in sequences]
        texts = self.decode(sequences, skip_special_tokens)
        return [texts] if isinstance(texts, str) else texts


def _write(file: Path, config: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(without(dict(config)), indent=2, ensure_ascii=False), encoding="utf-8")


def _ids(token_ids: Any) -> list[int]:
    values = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
    values = [values] if isinstance(values, int) else list(values)
    for id in values:
        if not isinstance(id, (int, np.integer)) or not 0 <= id < 2**32:
            raise TokenizerError(f"{id!r} is not a token id")
    return [int(id) for id in values]


def named_tokens(config: Mapping[str, Any], where: str, pad_token: str | None = None) -> dict[str, str]:
    """Names to tokens, from every place where tokenizer_config.json and its kin keep them: under its name at the top
    level, or in an object of `_NESTED`, as a string or an object with its "content". `pad_token` is what tokenizer.json
    pads with, if it says. Raises `TokenizerError`."""
    found: dict[str, str] = {} if pad_token is None else {"pad_token": pad_token}
    nested = (config.get(key) for key in _NESTED)
    for place in (config, *nested):
        for name, value in place.items() if isinstance(place, Mapping) else ():
            token = _text(value)
            if token is not None and (place is not config or name.endswith("_token")):
                found[name] = token
            elif name in NAMED_TOKENS and value is not None:
                raise TokenizerError(f"{where}: {name} is {shown(value)}, expected a token")
    return found


def restated(config: Mapping[str, Any], changed: Mapping[str, str | None]) -> dict[str, Any]:
    """The configuration with other tokens (or options) of these names; None takes a name out, wherever it stands."""
    out = {name: value for name, value in config.items() if name not in changed}
    for key in _NESTED:
        if isinstance(named := out.get(key), Mapping):
            out[key] = {name: value for name, value in named.items() if name not in changed}
    return out | {name: value for name, value in changed.items() if value is not None}


def _text(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else None
