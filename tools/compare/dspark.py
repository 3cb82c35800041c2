"""Freezes a small DSpark drafter and what mlx-vlm's network makes of it.

    python -m tools.compare.dspark            writes tests/dspark/ anew
    python -m tools.compare.dspark --check    compares with what is there, to 1e-5

It needs mlx-vlm 0.7.10. tests/dspark/ then holds config.json and model.safetensors of a random drafter for the
checkpoint gen25, and expected.npz of two blocks, one behind the other, in float32: `results` (target layers, rows,
tokens, hidden) of the model's layers, `lengths` (2,) of what comes before each block; of block n `ids.n` (rows,),
`tokens.n` and `confidence.n` (rows, block).
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

TESTS = Path(__file__).resolve().parents[2] / "tests"
FOLDER = TESTS / "dspark"
CONFIG: dict[str, Any] = {
    "architectures": ["Lfm2DSparkDraftModel"],
    "model_type": "qwen3",
    "dtype": "float32",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-05,
    "vocab_size": 848,
    "rope_theta": 10000000.0,
    "max_position_embeddings": 32768,
    "layer_types": ["full_attention"] * 2,
    "block_size": 9,
    "dflash_config": {"mask_token_id": 840, "target_layer_ids": [0, 2, 4], "num_target_layers": 5},
    "markov_rank": 8,
    "markov_head_type": "vanilla",
    "rope_is_neox_style": False,
    "enable_confidence_head": True,
    "confidence_head_with_markov": True,
}
LENGTHS = (11, 3)


def random_drafter() -> Any:
    """mlx-vlm's network with numbers that are drawn at random, those of norms near one."""
    from mlx_vlm.speculative.drafters.dspark import DSparkDraftModel, ModelConfig

    model = DSparkDraftModel(ModelConfig.from_dict(CONFIG))
    drawn = np.random.default_rng(7)
    arrays = []
    for name, array in sorted(dict(tree_flatten(model.parameters())).items()):
        noise = drawn.normal(0, 1, array.shape)
        arrays.append((name, mx.array((1 + 0.1 * noise if "norm" in name else 0.2 * noise).astype(np.float32))))
    model.load_weights(arrays, strict=True)
    return model


def expected(model: Any) -> dict[str, np.ndarray]:
    """The blocks behind random results of layers."""
    weights: Any = mx.load(str(TESTS / "golden" / "gen25" / "model.safetensors"))
    table = weights["model.language_model.embed_tokens.weight"].astype(mx.float32)
    model.embed_tokens, model.lm_head = table.__getitem__, lambda hidden: hidden @ table.T
    drawn = np.random.default_rng(8)
    layers = len(CONFIG["dflash_config"]["target_layer_ids"])
    results = drawn.normal(0, 1, (layers, 2, sum(LENGTHS), CONFIG["hidden_size"])).astype(np.float32)
    out = {"results": results, "lengths": np.array(LENGTHS)}
    cache, start, hidden = model.make_cache(), 0, []
    norm = model._hidden

    def kept(*given: Any) -> mx.array:
        hidden.append(norm(*given))
        return hidden[-1]

    model._hidden = kept
    for number, length in enumerate(LENGTHS):
        ids = drawn.integers(0, CONFIG["vocab_size"], 2).astype(np.int32)
        joined = mx.concatenate([mx.array(each[:, start : start + length]) for each in results], axis=-1)
        tokens = model.draft_block(mx.array(ids), joined, cache, 10, lambda logits: mx.argmax(logits, axis=-1))
        confidence = model.confidence(hidden[-1], mx.array(ids), tokens)
        start += length
        made = {"ids": ids, "tokens": np.array(tokens), "confidence": np.array(confidence)}
        out |= {f"{name}.{number}": array for name, array in made.items()}
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    model = random_drafter()
    arrays = dict(tree_flatten(model.parameters()))
    made = expected(model)
    if parser.parse_args().check:
        with np.load(FOLDER / "expected.npz") as stored:
            off = [name for name in made if not np.allclose(stored[name], made[name], rtol=0, atol=1e-5)]
        print(f"differ: {', '.join(off)}" if off else "all are equal")
        return bool(off)
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    mx.save_safetensors(str(FOLDER / "model.safetensors"), arrays, {"format": "mlx"})
    np.savez_compressed(FOLDER / "expected.npz", **made)  # type: ignore[arg-type]
    return 0


if __name__ == "__main__":
    sys.exit(main())
