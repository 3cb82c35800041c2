"""The small random text checkpoints `lfm2_text` and `lfm3_text`, as transformers saves them, their prompts, and what
the reference makes of them. Keys of the arrays of a case are those of stages.py.

lfm2_text    LFM2: `block_ff_dim` with the automatic adjustment, a head of its own
lfm3_text    LFM3: a window of 24 tokens, all kinds of layers, the head tied
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Lfm2Config, Lfm2ForCausalLM, Lfm3Config, Lfm3ForCausalLM

from . import lfm3
from .cases import Case
from .checkpoints import CONFIGS, set_weights, write_json
from .stages import greedy, language, load_as
from .tokenizer import write_text_tokenizer

_LFM2 = {key: value for key, value in CONFIGS["gen2"]["text_config"].items() if "dtype" not in key}
CONFIG: dict[str, dict[str, Any]] = {
    "lfm2_text": _LFM2
    | {
        "architectures": ["Lfm2ForCausalLM"],
        "bos_token_id": lfm3.IDS["<|startoftext|>"],
        "dtype": "float32",
        "eos_token_id": lfm3.IDS["<|im_end|>"],
        "pad_token_id": lfm3.IDS["<|pad|>"],
        "tie_embedding": False,
        "tie_word_embeddings": False,
        "vocab_size": 640,
    },
    "lfm3_text": {"architectures": ["Lfm3ForCausalLM"], "dtype": "float32", **lfm3.CONFIG["text_config"]},
}
CLASSES = {"lfm2_text": (Lfm2Config, Lfm2ForCausalLM), "lfm3_text": (Lfm3Config, Lfm3ForCausalLM)}
SEEDS = {"lfm2_text": 22, "lfm3_text": 34}


def _turn(text: str, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": text}


_LONG = "Please read the text and write it down in one line: the small one is near the large one. " * 6
_TURNS = [_turn("Answer with one word.", "system"), _turn("How many?"), _turn("four", "assistant"), _turn("And here?")]
CASES = [
    case
    for name in CONFIG
    for case in (
        Case(name, "short", [[_turn("How many shapes are there?")]]),
        Case(name, "long", [[_turn(_LONG)]]),
        Case(name, "turns", [_TURNS]),
        Case(name, "batch", [[_turn("How many?")], [_turn(_LONG)], _TURNS], {}, "left"),
    )
]


def write_checkpoint(name: str, folder: Path) -> None:
    """Writes checkpoint `name` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", CONFIG[name])
    config, network = CLASSES[name]
    model = network(config.from_pretrained(folder)).eval()
    set_weights(model, SEEDS[name])
    model.save_pretrained(folder)
    ids = {key: CONFIG[name][key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(folder / "generation_config.json", {"_from_model_config": True, **ids})
    write_text_tokenizer(lfm3.TOKENS, CONFIG[name]["vocab_size"], folder)


def load(folder: Path) -> tuple[Any, Any]:
    """The reference's model (float32, eager attention) and tokenizer of `folder`."""
    return load_as(folder, torch.float32, "eager", AutoModelForCausalLM), AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def freeze(case: Case, model: Any, tokenizer: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What the reference makes of `case`: arrays, and texts {"prompts": [...], "generated_text": [...]}."""
    rng = np.random.default_rng([3, *case.id.encode()])
    prompts = [
        tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False) for turns in case.conversations
    ]
    side = case.padding_side or "left"
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side=side, add_special_tokens=False)
    arrays = {key: inputs[key].numpy() for key in ("input_ids", "attention_mask")}
    arrays |= language(inputs, model, rng) | greedy(inputs, model, case.id)
    texts = tokenizer.batch_decode(arrays["generated"], skip_special_tokens=True)
    return arrays, {"prompts": prompts, "generated_text": texts}
