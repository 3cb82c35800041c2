"""How far the next tokens are from full precision where keys and values are quantised, and the memory that these take.

    python -m tools.compare.kv_bits MODEL [--lengths N ...] [--text FILE]

Prints a table. For each length, so many tokens of a text (unless given, the documentation) are run in float32, the last
256 of them 16 at a time, and their logits are compared: the mean Kullback-Leibler divergence in nats, and the share of
places where the likeliest token is the same. Lengths that the model has no positions for are left out.
"""

import argparse
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_lfm2vl import load
from mlx_lfm2vl.generation.chunked_prefill import Prompt, prefill
from mlx_lfm2vl.models.cache import KV_BITS, KeyValueCache
from mlx_lfm2vl.models.lfm2_vl import Lfm2VlForConditionalGeneration

ROOT = Path(__file__).resolve().parents[2]
COMPARED, BLOCK = 256, 16


def log_probabilities(model: Lfm2VlForConditionalGeneration, ids: np.ndarray) -> tuple[mx.array, int]:
    """(256, vocabulary) of what follows the last tokens of ids (n,), and the bytes of keys and values."""
    cache = model.make_cache()
    mx.eval(prefill(model, Prompt(ids[None, :-COMPARED]), cache))
    parts = []
    for at in range(len(ids) - COMPARED, len(ids), BLOCK):
        hidden = model.model.language_model(model.model.embed(ids[None, at : at + BLOCK]), cache=cache)
        logits = model.logits(hidden)[0].astype(mx.float32)
        parts.append(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        mx.eval(parts, cache.arrays)
    held = sum(array.nbytes for layer in cache.layers if isinstance(layer, KeyValueCache) for array in layer.states)
    return mx.concatenate(parts), held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder, hub repository or demo")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--text", type=Path)
    args = parser.parse_args()
    files = sorted(ROOT.glob("docs/*.md")) if args.text is None else [args.text]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    model, processor = load(args.model, dtype="float32")
    ids = np.array(processor.tokenizer.encode(text, add_special_tokens=False), np.int64)
    most = min(len(ids), model.config.text_config.max_position_embeddings)
    print("| tokens | bits | KL | same token | MB of keys and values |\n| --- | --- | --- | --- | --- |")
    for length in (length for length in args.lengths if COMPARED < length <= most):
        wanted = None
        for bits in (None, *KV_BITS):
            model.kv_bits = bits
            made, held = log_probabilities(model, ids[:length])
            wanted = made if wanted is None else wanted
            divergence = (mx.exp(wanted) * (wanted - made)).sum(axis=-1).mean().item()
            same = (wanted.argmax(axis=-1) == made.argmax(axis=-1)).mean().item()
            print(f"| {length:,} | {bits or 32} | {divergence:.1e} | {same:.1%} | {held / 1e6:.2f} |", flush=True)


if __name__ == "__main__":
    main()
