"""Methods of transformers' classes that are not offered, and what to do instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

_TRAINING = "this package is for inference; train with transformers, and load the saved folder"
_ADAPTERS = "give the adapter as the model is loaded: from_pretrained(..., adapter=FOLDER)"
_HOOKS = "call the model with output_hidden_states=True, or its modules one by one"
_QUANTISED = "mlx_lfm2vl.convert quantises a folder"
_ATTENTION = "attention is always MLX's"
_VOCABULARY = "add tokens with transformers, save tokenizer and model, and load the saved folder"
MODEL = {
    **dict.fromkeys(("gradient_checkpointing_enable", "gradient_checkpointing_disable"), _TRAINING),
    **dict.fromkeys(("enable_input_require_grads", "disable_input_require_grads", "requires_grad_"), _TRAINING),
    **dict.fromkeys(("zero_grad", "loss_function", "init_weights"), _TRAINING),
    **dict.fromkeys(("add_adapter", "load_adapter", "set_adapter", "delete_adapter", "active_adapters"), _ADAPTERS),
    **dict.fromkeys(("enable_adapters", "disable_adapters"), _ADAPTERS),
    **dict.fromkeys(("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"), _HOOKS),
    **dict.fromkeys(("quantize", "dequantize"), _QUANTISED),
    **dict.fromkeys(("set_attn_implementation", "set_use_kernels"), _ATTENTION),
    "buffers": "there are none beside the parameters",
    "named_buffers": "there are none beside the parameters",
    "compile": "MLX compiles what needs it; call the model as it is",
    "double": "MLX computes in float32, bfloat16 or float16; use float()",
    "load_state_dict": "use load_weights, which takes MLX's names and arrays",
    "prepare_inputs_for_generation": "call generate, or the model with past_key_values",
    "set_output_embeddings": "use resize_token_embeddings, or from_pretrained of another folder",
    "type": "use to(dtype)",
}
CONFIG = {
    **dict.fromkeys(
        ("id2label", "label2id", "num_labels", "problem_type"), "these models write text, and have no labels"
    ),
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "rope_theta", "layer_types"), "it is in text_config"),
    **dict.fromkeys(("hidden_size", "intermediate_size", "num_hidden_layers"), "text_config and vision_config have it"),
    **dict.fromkeys(("num_attention_heads",), "text_config and vision_config have it"),
    **dict.fromkeys(("num_key_value_heads", "head_dim"), "it is in text_config"),
}
TOKENIZER = {
    **dict.fromkeys(("add_tokens", "add_special_tokens", "train_new_from_iterator"), _VOCABULARY),
    **dict.fromkeys(("encode_plus", "batch_encode_plus", "prepare_for_model"), "call the tokenizer itself"),
    "build_inputs_with_special_tokens": "call the tokenizer with add_special_tokens=True",
    "save_vocabulary": "use save_pretrained",
}


def way_out(owner: Any, name: str, names: Mapping[str, str]) -> str:
    """The text of an `AttributeError` of an object or a class, with what to do where `names` holds it."""
    of = f"type object {owner.__name__!r}" if isinstance(owner, type) else f"{type(owner).__name__!r} object"
    text = f"{of} has no attribute {name!r}"
    return f"{text}, as it is not offered: {names[name]}" if name in names else text


class NotOffered:
    """A method that a class does not offer: an `AttributeError` with what to do, where it is asked for."""

    def __init__(self, name: str, names: Mapping[str, str]):
        self._name, self._names = name, names

    def __get__(self, owner: object | None, kind: type) -> NoReturn:
        raise AttributeError(way_out(owner or kind, self._name, self._names))
