"""The model classes of transformers, by name: `from_pretrained`, `save_pretrained`, `generate`, calls with tensors."""

from __future__ import annotations

import functools
import os
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from ..adapters.layers import LoRALinear
from ..adapters.read import read_adapter
from ..backends import Backend
from ..backends.thread_state import computing
from ..config import read_json
from ..errors import ConfigError, OptionError
from ..hub import Progress, resolve
from ..models import causal_lm, lfm2_vl
from ..models.cache import check_kv_bits
from ..models.outputs import ModelOutput
from ..weights.load import load_model
from ..weights.save import SHARD_BYTES, save_model
from . import tensors
from .configuration import OF_CALLS, TOKENS, CausalLMConfig, ConfigMethods, Lfm2VlConfig
from .generate import Callbacks, generate, transition_scores
from .generation_config import GenerationConfig, as_dict
from .loading import OF_FROM_PRETRAINED, hub_options, no_more
from .parameters import ModelMethods
from .sharing import push_folder

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def with_tensors(call: Callable[..., Any]) -> Callable[..., Any]:
    """A model's call with arrays of every kind, and the keywords of transformers that the network does not know."""

    @computing
    @functools.wraps(call)
    def with_tensors(self: Any, *arguments: Any, cache: Any = None, **named: Any) -> Any:
        like = tensors.first_given(*arguments[:1], named.get("input_ids"), named.get("inputs_embeds"))
        given = named.pop("mm_encoder_outputs", None)
        if given is not None and (images := given.get("image")) is not None:
            named["image_outputs"] = lfm2_vl.ImageFeatures([], [tensors.to_mlx(each) for each in images.pooler_output])
        for name in ("token_type_ids", "mm_token_type_ids"):
            named.pop(name, None)
        if cache is not None:
            named.setdefault("past_key_values", cache)
        for name in ("output_attentions", "output_hidden_states", "return_dict"):
            if named.get(name) is None:
                named[name] = getattr(self.config, name)
        made = call(
            self, *map(tensors.to_mlx, arguments), **{name: tensors.to_mlx(each) for name, each in named.items()}
        )
        return _as_kind_of(like, made) if tensors.is_torch(like) else made

    return with_tensors


def _as_kind_of(like: Any, output: Any) -> Any:
    """A model's output with tensors of the caller's kind in place of MLX arrays."""
    if isinstance(output, ModelOutput):
        for name in output:
            if name != "past_key_values":
                setattr(output, name, tensors.as_kind_of(like, getattr(output, name)))
        if output.image_outputs is not None:
            output.image_outputs = _as_kind_of(like, output.image_outputs)
        return output
    return tensors.as_kind_of(like, output)


class Lfm2VlModel(ModelMethods, lfm2_vl.Lfm2VlModel):
    """The model without its head; see `models.Lfm2VlModel`. Arrays may be torch's, NumPy's or MLX's; those that come
    out are torch's where `input_ids` is, else MLX's."""

    config_class: ClassVar[type[ConfigMethods]] = Lfm2VlConfig

    def __init__(self, config: Any):
        super().__init__(self.config_class.of(config))  # type: ignore[arg-type]

    __call__ = forward = with_tensors(lfm2_vl.Lfm2VlModel.__call__)

    @computing
    def get_image_features(self, *arguments: Any, **named: Any) -> Any:
        """As `models.Lfm2VlModel.get_image_features`, with arrays of every kind."""
        named.pop("return_dict", None)
        like = named.get("pixel_values", arguments[0] if arguments else None)
        given = {name: tensors.to_mlx(value) for name, value in named.items()}
        return _as_kind_of(like, super().get_image_features(*map(tensors.to_mlx, arguments), **given))

    @classmethod
    def from_pretrained(cls, path_or_repo: str | os.PathLike[str], **options: Any) -> Self:
        """As `Lfm2VlForConditionalGeneration.from_pretrained`."""
        folder, known, others = _open(path_or_repo, options, cls.config_class)
        return load_model(folder, model_class=cls, prefix="model.", **known).configured(others)


class Lfm2VlForConditionalGeneration(ModelMethods, lfm2_vl.Lfm2VlForConditionalGeneration):
    """The model with its head; see `models.Lfm2VlForConditionalGeneration`. Arrays as those of `Lfm2VlModel`."""

    config_class: ClassVar[type[ConfigMethods]] = Lfm2VlConfig
    model_class = Lfm2VlModel
    generation_config: Any  # a GenerationConfig
    load_note: str = ""  # a sentence, if the weights in memory are not those of the file
    checkpoint_key: str = ""  # of the files that it was loaded from
    name_or_path: str = ""  # the folder or repository that it was loaded from, as it was named
    backend: Backend  # what computes it, "mlx" or "numpy"

    def __init__(self, config: Any):
        super().__init__(self.config_class.of(config))  # type: ignore[arg-type]
        ids = {name: getattr(self.config, name) for name in TOKENS}
        self.generation_config = GenerationConfig(**ids)

    __call__ = forward = with_tensors(lfm2_vl.Lfm2VlForConditionalGeneration.__call__)

    @classmethod
    def from_pretrained(cls, path_or_repo: str | os.PathLike[str], **options: Any) -> Self:
        """From a folder, a hub repository or "demo".

        Args:
            path_or_repo: the model's name.
            options: `dtype` (or `torch_dtype`): "float32", "float16", "bfloat16", torch's or MLX's, or "auto", the
                dtype of the file; None is "auto", but float32 on the backend numpy, where quantised weights become
                dense. `load_note` says what was done. `adapter`, `backend`, `kv_bits`, `progress` as for `load`.
                `revision`, `token`, `cache_dir`, `local_files_only` for the hub; `subfolder`; `config`, whose fields
                must be the folder's; `output_hidden_states`, `output_attentions`, `return_dict`; `generation_config`.
                What has no meaning here (`device_map={...}`, `trust_remote_code` ...) is ignored with a warning.

        Raises:
            HubError, ConfigError, WeightsError, OptionError, OutOfMemoryError
        """
        given, adapter = options.pop("generation_config", None), options.pop("adapter", None)
        kv_bits = options.pop("kv_bits", None)
        change = None if adapter is None else read_adapter(adapter)
        folder, known, others = _open(path_or_repo, options, cls.config_class)
        check_kv_bits(kv_bits, cls.config_class.from_pretrained(folder).text_config.head_dim)
        known["adapt"] = None if change is None else change.apply
        model = load_model(folder, model_class=cls, **known).configured(others)
        model.checkpoint_key += "" if change is None else change.key
        model.name_or_path, model.kv_bits = os.fspath(path_or_repo), kv_bits
        file = folder / "generation_config.json"
        if given is None and file.is_file():
            given = GenerationConfig.from_dict(read_json(file), str(file))
            if given.eos_token_id is None:
                given.eos_token_id = model.config.eos_token_id
        if given is not None:
            model.generation_config = given
        return model

    def get_image_features(self, *arguments: Any, **named: Any) -> Any:
        """As `models.Lfm2VlModel.get_image_features`, with arrays of every kind."""
        return self.model.get_image_features(*arguments, **named)

    def generate(
        self,
        inputs: Any = None,
        generation_config: Any = None,
        logits_processor: Sequence[Any] | None = None,
        stopping_criteria: Sequence[Any] | None = None,
        prefix_allowed_tokens_fn: Any = None,
        synced_gpus: bool | None = None,
        assistant_model: Any = None,
        streamer: Any = None,
        negative_prompt_ids: Any = None,
        negative_prompt_attention_mask: Any = None,
        custom_generate: Any = None,
        *,
        tokenizer: Any = None,
        seed: int | None = None,
        **settings: Any,
    ) -> Any:
        """Ids of prompt and answer, (B, L + new), as transformers' `generate` makes them.

        Args:
            inputs: `input_ids` (B, L), which may also go by name. Rows are padded on the left.
            generation_config: settings, in place of the model's own.
            logits_processor: functions (ids, scores) -> scores, in this order.
            stopping_criteria: functions (ids, scores) -> bool, or (B,) bool.
            prefix_allowed_tokens_fn: (row, ids) -> the tokens that may follow.
            synced_gpus: without effect; there is one device.
            assistant_model: not offered.
            streamer: has `put(ids)` and `end()`; gets the prompt, then each token.
            negative_prompt_ids, negative_prompt_attention_mask, custom_generate: not offered.
            tokenizer: for `stop_strings`.
            seed: makes sampling repeatable. Each row has numbers of its own.
            settings: arrays of the processor, `inputs_embeds`, `past_key_values` (or `cache`), and the settings of
                `GenerationConfig`. What they do not say the model's own say, then transformers' defaults: greedy, 20
                new tokens; with `do_sample` top_k 50.

        Returns:
            The ids, torch's where `input_ids` is, else MLX's. A row that has ended is filled with `pad_token_id`. With
            `return_dict_in_generate` a `GenerateDecoderOnlyOutput`.

        Raises:
            OptionError, InputError, PromptError, NotFiniteError, OutOfMemoryError
        """
        for name, value in (
            ("assistant_model", assistant_model),
            ("negative_prompt_ids", negative_prompt_ids),
            ("negative_prompt_attention_mask", negative_prompt_attention_mask),
            ("custom_generate", custom_generate),
        ):
            if value is not None:
                raise OptionError(f"{name} is given, which is not offered; leave it out")
        settings.pop("trust_remote_code", None)
        processors, criteria = tuple(logits_processor or ()), tuple(stopping_criteria or ())
        callbacks = Callbacks(processors, criteria, prefix_allowed_tokens_fn, streamer, tokenizer, seed)
        return generate(self, inputs, generation_config, settings, callbacks)

    compute_transition_scores = staticmethod(computing(transition_scores))

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        hf: bool = False,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        max_shard_size: int | str = SHARD_BYTES,
        **options: Any,
    ) -> None:
        """Writes weights, config.json and generation_config.json, in place of older ones in the folder. The processor
        has its own `save_pretrained`.

        Args:
            folder: made if it is not there.
            hf: in the layout that transformers loads, in place of MLX's. Quantised weights have none.
            push_to_hub, repo_id: also into this repository.
            max_shard_size: the bytes of a file, as a number or as "200MB". One tensor may have more.
            options: as for `push_to_hub`; what says how transformers writes (`safe_serialization` ...) is without
                effect. `state_dict` is None.

        Raises:
            OutputError, NotFiniteError, OptionError, HubError
        """
        if options.pop("state_dict", None) is not None:
            raise OptionError("save_pretrained has no option 'state_dict'; call load_weights of the model before")
        for name in ("safe_serialization", "is_main_process", "save_peft_format", "variant"):
            options.pop(name, None)
        if not push_to_hub:
            no_more(options, "save_pretrained")
        size = _shard_bytes(max_shard_size)
        _save(self, Path(folder), hf, size)
        if push_to_hub:
            name = repo_id or os.path.basename(os.path.normpath(folder))
            self.push_to_hub(name, hf=hf, max_shard_size=size, **options)

    def push_to_hub(
        self, repo_id: str, *, hf: bool = False, max_shard_size: int | str = SHARD_BYTES, **options: Any
    ) -> str:
        """Saves into a repository; see `push_folder`. `mlx_lfm2vl.convert` with `upload_repo` also checks the model."""
        size = _shard_bytes(max_shard_size)
        return push_folder(lambda folder: _save(self, Path(folder), hf, size), repo_id, **options)


class CausalLMModel(Lfm2VlModel, causal_lm.CausalLMModel):
    """The backbone of a text model without its head; see `models.causal_lm`. Arrays as those of `Lfm2VlModel`."""

    config_class = CausalLMConfig


class ForCausalLM(Lfm2VlForConditionalGeneration, causal_lm.ForCausalLM):
    """A text model with its head; see `models.causal_lm`. Arrays as those of `Lfm2VlModel`."""

    config_class = CausalLMConfig
    model_class = CausalLMModel


def _open(
    path_or_repo: str | os.PathLike[str], options: dict[str, Any], config_class: type[ConfigMethods]
) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """The folder of a model, the keywords of `load_model`, and what the configuration says beside its fields."""
    known: dict[str, Any] = {name: options.pop(name, None) for name in ("backend", "progress", "group")}
    if options.pop("chat_template", None) is not None:
        warnings.warn("from_pretrained ignores chat_template, which is the processor's", stacklevel=3)
    dtype = tensors.first_given(options.pop("dtype", None), options.pop("torch_dtype", None))
    known["dtype"] = tensors.dtype_name(dtype) if tensors.is_dtype(dtype) else dtype
    config = options.pop("config", None)
    of_calls = {name: options.pop(name) for name in OF_CALLS if name in options}
    place, hub, others = hub_options(path_or_repo, options)
    no_more(others, "from_pretrained", (*OF_FROM_PRETRAINED, *OF_CALLS))
    progress: Progress | None = known["progress"]
    folder = resolve(place, progress=progress, **hub)
    own = config_class.from_pretrained(folder)
    if isinstance(config, (str, os.PathLike)):
        config = config_class.from_pretrained(config)
    given = own if config is None else config_class.of(config)
    if given != own:
        name = next(name for name in vars(own) if getattr(own, name) != getattr(config, name, None))
        raise ConfigError(f"{folder}: config differs in {name} from the folder's; write it into config.json")
    return folder, known, {**given.others, "_name_or_path": os.fspath(path_or_repo), **of_calls}


def _shard_bytes(size: int | str) -> int:
    """The bytes that transformers' `max_shard_size` says, a number or a text such as "5GB". Raises `OptionError`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?B)", str(size).strip().upper())
    made = int(float(found[1]) * _UNITS[found[2]]) if found else size
    if isinstance(made, bool) or not isinstance(made, int) or made < 1:
        raise OptionError(f"max_shard_size is {size!r}, expected bytes, or a text such as '5GB' or '200MB'")
    return made


@computing
def _save(model: Any, folder: Path, hf: bool, size: int) -> None:
    """Writes weights, in files of this size, config.json and generation_config.json in place of older ones."""
    if hf and model.config.quantization:
        raise OptionError("transformers cannot load quantised weights of MLX; load a dense checkpoint, or leave hf out")
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise OptionError("the model is quantised with an adapter beside it; `mlx_lfm2vl.fuse` writes both as one")
    save_model(model, folder, model.config.to_dict(), as_dict(model.generation_config), hf, size)
