"""`Tokenizer`, as a processor's `tokenizer`: tensors of every kind, chat templates, named tokens that can be set."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

from ..config.files import writing
from ..errors import ConfigError, OptionError, TemplateError
from ..hub import resolve
from ..processing import tokenizer as processing
from ..processing.batch_feature import SIDES, TextOptions
from ..processing.batch_feature import BatchFeature as PlainBatchFeature
from ..processing.conversation import conversations_of
from ..processing.template import JINJA_FILE, MORE, TOKENIZER_FILE, TOKENIZER_PLACES, ChatTemplate, named_templates
from ..processing.tokenizer import IMAGE_TOKENS, NAMED_TOKENS
from . import tensors
from .batch_feature import BatchFeature
from .call_options import normalised
from .generation_config import count
from .loading import OF_FROM_PRETRAINED, hub_options, no_more, not_of_models
from .not_offered import TOKENIZER, way_out
from .sharing import Shared

_FILES = ("*.json", "*.jinja", "*.txt")
_OWN = ("backend", "config", "where", "folder", "special_tokens_map")  # set by the constructor
_AROUND = ("add_bos_token", "add_eos_token")
_NO_LIMIT = int(1e30)  # transformers', where no file says how long a prompt may be
_SETTABLE = ("padding_side", "truncation_side", "chat_template", "model_max_length")


class Tokenizer(Shared, processing.Tokenizer):
    """`processing.Tokenizer` with the calls of transformers' fast tokenizers."""

    is_fast: ClassVar[bool] = True
    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask"]

    @classmethod
    def from_pretrained(cls, path_or_repo: str | os.PathLike[str], **options: Any) -> Self:
        """From a folder, a hub repository or "demo". `options` as those of `AutoProcessor.from_pretrained`; others are
        attributes to set (`padding_side="left"`). Raises `HubError`, `TokenizerError`, `OptionError`."""
        place, hub, others = hub_options(path_or_repo, not_of_models(options))
        made = cls.from_folder(resolve(place, patterns=_FILES, enough=("tokenizer.json",), **hub))
        for name, value in others.items():
            if name in _AROUND:
                raise OptionError(
                    f"Tokenizer.from_pretrained has no option {name!r}; tokenizer.json says what is put around texts, "
                    "and add_special_tokens=False in a call leaves it out"
                )
            if name not in _SETTABLE and name not in NAMED_TOKENS:
                no_more({name: value}, "Tokenizer.from_pretrained", (*OF_FROM_PRETRAINED, *_SETTABLE, *NAMED_TOKENS))
            setattr(made, name, value)
        return made

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets the padding side, the truncation side, the template, or a named token by itself or by its id. Raises
        `OptionError` for a token that the vocabulary lacks."""
        token = name.removesuffix("_id")
        if token in NAMED_TOKENS or token in IMAGE_TOKENS:
            text = self.backend.id_to_token(value) if name.endswith("_id") and value is not None else value
            text = None if text is None else str(text)
            if (text is None and value is not None) or (text is not None and self.backend.token_to_id(text) is None):
                raise OptionError(f"{name} is {value!r}, which the tokenizer does not have")
            known = {key: each for key, each in self.special_tokens_map.items() if key != token}
            name, value = "special_tokens_map", known if text is None else {**known, token: text}
        elif name in ("padding_side", "truncation_side") and value not in SIDES:
            raise OptionError(f"{name} is {value!r}, expected 'left' or 'right'")
        elif name == "model_max_length":
            value = _NO_LIMIT if value is None else count(name, value)
        elif not name.startswith("_") and name not in (*_OWN, *_SETTABLE):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r} that can be set")
        object.__setattr__(self, name, value)
        if name == "special_tokens_map":
            self.__dict__.pop("image_tokens", None)  # which are made of it

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise AttributeError(way_out(self, name, TOKENIZER)) from None

    @property
    def name_or_path(self) -> str:
        """The folder that it was read from."""
        return "" if self.folder is None else str(self.folder)

    @property
    def backend_tokenizer(self) -> Any:
        """The tokenizer of the library `tokenizers`."""
        return self.backend

    @property
    def vocab(self) -> dict[str, int]:
        return self.get_vocab()

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Ids to added tokens, as `tokenizers` has them."""
        return dict(sorted(self.backend.get_added_tokens_decoder().items()))

    def get_added_vocab(self) -> dict[str, int]:
        """Added tokens to their ids."""
        return {token.content: id for id, token in self.added_tokens_decoder.items()}

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text of tokens, those that are none left out."""
        return str(self.backend.decoder.decode(list(tokens)))

    @property
    def chat_template(self) -> str | dict[str, str] | None:
        """The template, or several by name; None if there is none. Raises `TemplateError`."""
        try:
            named, _ = named_templates(*self._places())
        except ConfigError as error:
            raise TemplateError(str(error)) from None
        return named.get("default") if not named.keys() - {"default"} else named

    @chat_template.setter
    def chat_template(self, template: Any) -> None:
        self._chat_template = template

    def _places(self) -> tuple[Path, Any, tuple[str, ...]]:
        """Where templates are looked for: one that was set goes before those of the folder."""
        own = self.folder is None or self._chat_template != self.config.get("chat_template")
        return self.folder or Path(os.devnull), self._chat_template, (TOKENIZER_FILE,) if own else TOKENIZER_PLACES

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "chat_template": self._chat_template}

    def get_chat_template(self, chat_template: str | None = None, tools: Any = None) -> str:
        """The text of the template that `apply_chat_template` uses. Raises `TemplateError`."""
        return self._template(chat_template, bool(tools)).source

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes the tokenizer's files, and the chat templates that it uses. Raises `OutputError`, `ConfigError`."""
        super().save_pretrained(folder)
        templates = self.chat_template
        named = {"default": templates} if isinstance(templates, str) else templates or {}
        with writing(folder) as target:
            for name, template in named.items():
                file = target / (JINJA_FILE if name == "default" else MORE.replace("*", os.path.basename(name)))
                file.parent.mkdir(exist_ok=True)
                file.write_text(template, encoding="utf-8")

    @property
    def all_special_tokens(self) -> list[str]:
        return [token for token in map(self.backend.id_to_token, self.all_special_ids) if token is not None]

    def __call__(self, text: Any = None, *arguments: Any, **options: Any) -> BatchFeature:  # type: ignore[override]
        """As `processing.Tokenizer.__call__`. `return_tensors` is "np", "mlx", "pt", or None for lists.

        Raises:
            OptionError, TokenizerError: naming what is wrong.
        """
        if arguments or text is None:
            raise OptionError("the tokenizer takes one text or a list of them; all else goes by name")
        options = normalised(options)
        kind = tensors.check_return_tensors(options.pop("return_tensors", None))
        options.pop("return_mm_token_type_ids", None)
        try:
            made = super().__call__([text] if kind and isinstance(text, str) else text, **options)
        except TypeError as error:
            raise OptionError(f"the tokenizer's call: {str(error).partition(') ')[2] or error}") from None
        return BatchFeature.of(made, kind)

    def encode(  # type: ignore[override]
        self, text: Any, add_special_tokens: bool = True, return_tensors: str | None = None, **options: Any
    ) -> Any:
        """The ids of a text, a list; or of a call with `return_tensors` or other keywords, "input_ids" alone."""
        if return_tensors is None and not options:
            return super().encode(text, add_special_tokens)
        return self(text, add_special_tokens=add_special_tokens, return_tensors=return_tensors, **options)["input_ids"]

    def batch(
        self, rows: Sequence[list[int]], options: TextOptions, masks: Sequence[list[int]] = ()
    ) -> PlainBatchFeature:
        """As there; without `max_length`, rows are cut to `model_max_length`."""
        if options.truncation and options.max_length is None and self.model_max_length is not None:
            options = replace(options, max_length=self.model_max_length)
        return super().batch(rows, options, masks)

    def pad(
        self, encoded_inputs: Any, padding: bool | str = True, *, return_tensors: str | None = None, **options: Any
    ) -> BatchFeature:
        """Rows of ids padded, with their masks.

        Args:
            encoded_inputs: rows of ids; or a mapping, or several, with "input_ids" and maybe "attention_mask".
            padding: as for `__call__`.
            return_tensors: as for `__call__`.
            options: `max_length`, `pad_to_multiple_of`, `padding_side`.

        Raises:
            OptionError, TokenizerError
        """
        given = encoded_inputs
        if isinstance(given, (list, tuple)) and given and isinstance(given[0], Mapping):
            given = {name: [each[name] for each in given] for name in given[0]}
        columns = dict(given) if isinstance(given, Mapping) else {"input_ids": given}
        if wrong := columns.keys() - {"input_ids", "attention_mask"}:
            raise OptionError(f"{min(wrong)} cannot be padded; pad input_ids and attention_mask alone")
        options.pop("verbose", None)
        rows = {name: [tensors.to_numpy(row).tolist() for row in column] for name, column in columns.items()}
        keywords = TextOptions(padding=padding, return_tensors=None, **options)
        made = self.batch(rows["input_ids"], keywords, rows.get("attention_mask", ()))
        made["attention_mask"] = made.pop("assistant_masks", made["attention_mask"])
        return BatchFeature.of(made, tensors.check_return_tensors(return_tensors))

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **variables: Any,
    ) -> Any:
        """A conversation without pictures (or a list of them) as text or ids; arguments as transformers has them.

        Returns:
            "input_ids" and "attention_mask"; without `return_dict` the ids, without `tokenize` the text.

        Raises:
            TemplateError, OptionError, TokenizerError: naming what is wrong.
        """
        conversations, batched = conversations_of(conversation)
        template = self._template(chat_template, bool(tools))
        texts = [
            template.render(
                messages,
                tools=tools,
                documents=documents,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **variables,
            ).text
            for messages in conversations
        ]
        if not tokenize:
            return texts if batched else texts[0]
        made = self(
            texts if batched else texts[0],
            add_special_tokens=False,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            return_tensors=return_tensors,
            **(tokenizer_kwargs or {}),
        )
        return made if return_dict else made["input_ids"]

    def _template(self, source: str | None, with_tools: bool = False) -> ChatTemplate:
        if source is None and self.folder is None and self._chat_template is None:
            raise TemplateError("this tokenizer has no chat template; pass chat_template=")
        folder, template, places = self._places()
        return ChatTemplate.from_folder(folder, template, self.special_tokens_map, source, with_tools, places)
