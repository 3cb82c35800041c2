"""The sampling that the makers' model cards recommend, for checkpoints whose generation_config.json has none.

The published files name end tokens only, so a model is recognised by its shape. Others (the demo model, other sizes)
have no recommendation and are greedy.
"""

from __future__ import annotations

from dataclasses import replace

from ..config import GenerationConfig, Lfm2VlConfig

_FAMILY = {"temperature": 0.1, "min_p": 0.15, "repetition_penalty": 1.05}
# (hidden size, layers, vocabulary) of the language model
_CARDS: dict[tuple[int, int, int], dict[str, float]] = {
    (1024, 16, 65536): _FAMILY,  # LFM2-VL-450M, LFM2.5-VL-450M
    (2048, 16, 65536): _FAMILY,  # LFM2-VL-1.6B, LFM2.5-VL-1.6B
    (2048, 30, 65536): _FAMILY,  # LFM2-VL-3B
    (2048, 30, 128000): {"temperature": 0.2, "top_k": 50, "repetition_penalty": 1.0},  # LFM2.5-VL-3B
}
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def recommended(config: Lfm2VlConfig, checkpoint: GenerationConfig) -> GenerationConfig:
    """`checkpoint` as it is if it says anything of sampling, else with what the model's card says."""
    if checkpoint.do_sample or any(getattr(checkpoint, name) is not None for name in _SAMPLING):
        return checkpoint
    text = config.text_config
    card = _CARDS.get((text.hidden_size, text.num_hidden_layers, text.vocab_size))
    return checkpoint if card is None else replace(checkpoint, do_sample=True, **card)  # type: ignore[arg-type]
