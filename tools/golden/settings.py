"""Runs the reference's `generate` with each of its settings on one case, and keeps the new tokens.

`SETTINGS` has a line for each call: keyword arguments of `generate`. Where they sample, one token is made and the
scores that it is drawn from are kept: in each row how many are not -inf, and the five largest.
"""

from typing import Any

import torch

from .cases import CASES
from .pictures import draw

CASE = "gen2-batch-left"  # two rows, the first padded; greedy tokens: 16, 710, 502 ... and 362, 341, 2 ...
SMALLEST_MARGIN = 1e-3  # between the best scores of a step; a smaller one could turn with the order of a sum
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"max_new_tokens": 8},
    "default length": {},
    "max_length": {"max_length": 150},
    "an end token": {"max_new_tokens": 24, "eos_token_id": 536},
    "end tokens": {"max_new_tokens": 24, "eos_token_id": [536, 150], "pad_token_id": 3},
    "no end token": {"max_new_tokens": 6, "eos_token_id": None},
    "min_new_tokens": {"max_new_tokens": 24, "eos_token_id": 536, "min_new_tokens": 8},
    "min_length": {"max_new_tokens": 24, "eos_token_id": 536, "min_length": 140},
    "stop_strings": {"max_new_tokens": 16, "stop_strings": ["_row_", "Th"]},
    "repetition_penalty": {"max_new_tokens": 12, "repetition_penalty": 1.8},
    "no_repeat_ngram_size": {"max_new_tokens": 16, "no_repeat_ngram_size": 2},
    "bad_words_ids": {"max_new_tokens": 8, "bad_words_ids": [[16], [710, 502]]},
    "sequence_bias": {"max_new_tokens": 8, "sequence_bias": [[[16], -10.0], [[341, 2], -10.0]]},
    "suppress_tokens": {"max_new_tokens": 8, "suppress_tokens": list(range(400))},
    "begin_suppress_tokens": {"max_new_tokens": 8, "begin_suppress_tokens": list(range(700))},
    "forced_eos_token_id": {"max_new_tokens": 5, "forced_eos_token_id": 7},
    "exponential_decay_length_penalty": {
        "max_new_tokens": 16,
        "eos_token_id": 536,
        "exponential_decay_length_penalty": [2, 1.6],
    },
    "use_cache": {"max_new_tokens": 6, "use_cache": False},
    "what changes nothing": {
        "max_new_tokens": 4,
        "num_beams": 1,
        "length_penalty": 1.0,
        "early_stopping": False,
        "guidance_scale": 1.0,
        "num_return_sequences": 1,
        "output_attentions": False,
        "typical_p": 1.0,
    },
    "sampling": {"do_sample": True},
    "temperature": {"do_sample": True, "temperature": 0.3},
    "top_k": {"do_sample": True, "top_k": 7},
    "top_k off": {"do_sample": True, "top_k": 0},
    "top_p": {"do_sample": True, "top_k": 0, "top_p": 0.6},
    "top_k and top_p": {"do_sample": True, "top_k": 20, "top_p": 0.8, "temperature": 1.7},
    "min_p": {"do_sample": True, "top_k": 0, "min_p": 0.4},
    "typical_p": {"do_sample": True, "top_k": 0, "typical_p": 0.4},
    "epsilon_cutoff": {"do_sample": True, "top_k": 0, "epsilon_cutoff": 0.0015},
    "eta_cutoff": {"do_sample": True, "top_k": 0, "eta_cutoff": 0.0015},
    "renormalize_logits": {"do_sample": True, "top_p": 0.9, "renormalize_logits": True},
}


@torch.no_grad()
def answers(model: Any, processor: Any) -> dict[str, Any]:
    """What the reference makes of `CASE` with each of `SETTINGS`. Raises `ValueError` where an answer is a near tie."""
    case = next(case for case in CASES if case.id == CASE)
    prompts = [processor.apply_chat_template(turns, add_generation_prompt=True) for turns in case.conversations]
    pictures = [[draw(name) for name in names] for names in case.picture_names]
    inputs = processor(images=pictures, text=prompts, return_tensors="pt", padding=True, padding_side=case.padding_side)
    return {
        "case": CASE,
        "calls": [
            {"name": name, "settings": chosen, **_answer(model, processor, inputs, chosen)}
            for name, chosen in SETTINGS.items()
        ],
    }


def _answer(model: Any, processor: Any, inputs: Any, chosen: dict[str, Any]) -> dict[str, Any]:
    sampled = chosen.get("do_sample", False)
    out = model.generate(
        **inputs,
        **chosen,
        **({"max_new_tokens": 1} if sampled else {}),
        **({"tokenizer": processor.tokenizer} if "stop_strings" in chosen else {}),
        return_dict_in_generate=True,
        output_scores=True,
    )
    if sampled:
        scores = out.scores[0]
        kept = (scores > -torch.inf).sum(dim=-1).tolist()
        return {"kept": kept, "largest": scores.topk(min(5, *kept), dim=-1).values.tolist()}
    for scores in out.scores:
        best, second = scores.topk(2, dim=-1).values.T
        if (best - second).min() < SMALLEST_MARGIN:
            raise ValueError(f"{chosen}: two scores are as good as equal; choose other settings")
    return {"tokens": out.sequences[:, inputs["input_ids"].shape[1] :].tolist()}
