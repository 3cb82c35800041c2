"""What a token, a picture and a prompt cost by calculation, and the tokens a second that published bandwidths allow.

    python -m tools.roofline            prints the tables of docs/performance.md
    python -m tools.roofline --into FILE    writes them between `<!-- roofline -->` and `<!-- end -->`

Nothing is measured. A token reads all weights of the language model and head once, keys and values of all tokens before
it, and the states of convolutions. Two floating-point operations are counted for each weight and token, four for each
channel of a query and a key.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.nn as nn

from mlx_lfm2vl.config import ModelConfig, config_of
from mlx_lfm2vl.generation.chunked_prefill import key_bytes, layer_flops, question_bytes, token_flops
from mlx_lfm2vl.models.families import NETWORKS
from mlx_lfm2vl.weights.names import parameters

SIZE = 2  # bytes of a number of 16 bits
GROUP = 64  # weights that share a scale and a bias of 16 bits
WIDTHS = (16, 8, 4)
CONTEXT, PROMPT, LONG = 1024, 1024, 32768
M1_FLOPS = 2.6e12  # float32, as published
# Kernels of a greedy token in 16 bits and with quantised layers, by layers, as tests/test_step_kernels.py counts them.
KERNELS = {16: (199, 231), 30: (341, 401)}
LAUNCH = 2e-6  # seconds that a GPU idles before a kernel: assumed
FAST = (67, 273, 546)  # GB/s
# GB/s as published, and where that was read
CHIPS = {
    "M1": (67, "https://spy.macrumors.com/threads/apple-silicon-mac-chips.2471322"),
    "M1 Pro, M2 Pro": (200, "https://gigazine.net/gsc_news/en/20231101-apple-m3-pro-memory-bandwidth"),
    "M2": (100, "https://www.macrumors.com/2022/06/06/apple-announces-m2-chip-with-support-for-up-to-24gb-memory/"),
    "M3": (
        100,
        "https://www.anandtech.com/show/21116/apple-announces-m3-soc-family-m3-m3-pro-and-m3-max-make-their-marks",
    ),
    "M3 Pro": (150, "https://www.macrumors.com/2023/10/31/apple-m3-pro-less-memory-bandwidth/"),
    "M3 Max, 30 cores": (300, "https://www.macrumors.com/2023/10/31/apple-m3-pro-less-memory-bandwidth/"),
    "M3 Max, 40 cores": (400, "https://www.macrumors.com/2023/10/31/apple-m3-pro-less-memory-bandwidth/"),
    "M4": (120, "https://mactrast.com/?p=168123"),
    "M4 Pro": (273, "https://techmoran.com/2024/10/31/apple-unveils-its-most-powerful-chips-the-m4-pro-and-m4-max/"),
    "M4 Max": (546, "https://www.macrumors.com/2024/10/30/apple-announces-m4-max-chip/"),
    "M5": (
        153,
        "https://www.macobserver.com/news/apples-new-m5-chip-lands-with-4x-ai-gpu-boost-faster-neural-engine-and-higher-memory-bandwidth/",
    ),
    "M5 Pro": (307, "https://www.lowyat.net/2026/385170/apple-m5-pro-m5-max"),
    "M5 Max": (614, "https://www.lowyat.net/2026/385170/apple-m5-pro-m5-max"),
}


def checkpoint(hidden: int, layers: int, width: int, vocabulary: int, tower: tuple[int, int, int, int]) -> ModelConfig:
    """A published LFM2.5-VL. `width`: of the feed-forward; `tower`: hidden size, layers, heads and width."""
    attention = (2, 5, 8, 10, 12, 14) if layers == 16 else (2, 5, 9, 13, 17, 21, 24, 27)
    text = {
        **{"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": hidden // 64},
        **{"num_key_value_heads": 8, "intermediate_size": width, "block_auto_adjust_ff_dim": False},
        **{"vocab_size": vocabulary, "max_position_embeddings": 128000},
        "layer_types": ["full_attention" if index in attention else "conv" for index in range(layers)],
    }
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    data: dict[str, Any] = {
        **{"model_type": "lfm2_vl", "projector_hidden_size": 2048, "projector_use_layernorm": False},
        **{"image_token_id": 396, "text_config": text, "vision_config": dict(zip(names, tower, strict=True))},
    }
    return config_of(data)


CHECKPOINTS = {
    "450M": checkpoint(1024, 16, 4608, 65536, (768, 12, 12, 3072)),
    "1.6B": checkpoint(2048, 16, 8192, 65536, (1152, 27, 16, 4304)),
    "3B": checkpoint(2048, 30, 10752, 128000, (1152, 27, 16, 4304)),
}


def weight_bytes(module: nn.Module, bits: int) -> int:
    """Of a part of a model whose tables and linear layers have so many bits. Nothing of it is computed."""
    arrays = parameters(module)
    tables = [array.size for array in arrays.values() if array.ndim == 2]
    rest = sum(array.size for array in arrays.values() if array.ndim != 2)
    each = SIZE if bits == 16 else bits / 8 + 2 * SIZE / GROUP
    return int(sum(tables) * each) + rest * SIZE


def state_bytes(config: ModelConfig, tokens: int, kv_bits: int | None = None) -> int:
    """Keys, values and convolution states behind so many tokens."""
    text = config.text_config
    convolutions = text.layer_types.count("conv") * (text.conv_L_cache - 1) * text.hidden_size * SIZE
    return text.keys_kept(tokens) * key_bytes(text, SIZE, kv_bits) + convolutions


def costs() -> Iterator[str]:
    yield f"| checkpoint | GB a token, {', '.join(map(str, WIDTHS))} bits | MB of states, {CONTEXT:,} tokens | "
    yield f"GFLOP a token | a view of 512x512 | a prompt of {PROMPT:,} tokens | both on an M1 |\n"
    yield "| --- | --- | --- | --- | --- | --- | --- |\n"
    for name, config in CHECKPOINTS.items():
        body = NETWORKS[type(config)](config).model.language_model
        read = " / ".join(f"{(weight_bytes(body, bits) + state_bytes(config, CONTEXT)) / 1e9:.2f}" for bits in WIDTHS)
        head = 2.0 * config.text_config.vocab_size * config.text_config.hidden_size
        token = token_flops(config.text_config, CONTEXT) + head
        view = config.vision_config.num_hidden_layers * layer_flops(config.vision_config, 1024, 1024)
        prompt = PROMPT * token_flops(config.text_config, PROMPT // 2)
        seconds = (view + prompt) / M1_FLOPS
        yield f"| {name} | {read} | {state_bytes(config, CONTEXT) / 1e6:.1f} | {token / 1e9:.2f} | {view / 1e9:.0f} | "
        yield f"{prompt / 1e9:,.0f} | {seconds:.2f} s |\n"


def ceilings() -> Iterator[str]:
    yield f"| GB/s | {' | '.join(CHECKPOINTS)} |\n| --- |{' --- |' * len(CHECKPOINTS)}\n"
    bodies = {name: NETWORKS[type(config)](config).model.language_model for name, config in CHECKPOINTS.items()}
    for chip, (bandwidth, source) in CHIPS.items():
        cells = []
        for name, config in CHECKPOINTS.items():
            states = state_bytes(config, CONTEXT)
            speeds = (bandwidth * 1e9 / (weight_bytes(bodies[name], bits) + states) for bits in WIDTHS)
            cells.append(" / ".join(f"{speed:.0f}" for speed in speeds))
        yield f"| [{chip}]({source}): {bandwidth} | {' | '.join(cells)} |\n"


def shares() -> Iterator[str]:
    yield f"| checkpoint | kernels a token, dense, quantised | {' | '.join(f'{each} GB/s' for each in FAST)} |\n"
    yield f"| --- | --- |{' --- |' * len(FAST)}\n"
    for name, config in CHECKPOINTS.items():
        body, states = NETWORKS[type(config)](config).model.language_model, state_bytes(config, CONTEXT)
        kernels, cells = KERNELS[config.text_config.num_hidden_layers], []
        for bandwidth in FAST:
            percents = []
            for bits in WIDTHS:
                read = (weight_bytes(body, bits) + states) / (bandwidth * 1e9)
                percents.append(f"{100 * read / (read + kernels[bits < 16] * LAUNCH):.0f}")
            cells.append(" / ".join(percents) + " %")
        yield f"| {name} | {kernels[0]}, {kernels[1]} | {' | '.join(cells)} |\n"


def long_context() -> Iterator[str]:
    yield f"| checkpoint, bits | weights | keys and values of {LONG:,} tokens at 16 / 8 / 4 bits | all, at most |\n"
    yield "| --- | --- | --- | --- |\n"
    for name, config in CHECKPOINTS.items():
        model = NETWORKS[type(config)](config)
        whole, body = weight_bytes(model, 16), weight_bytes(model.model.language_model, 16)
        for bits in WIDTHS:
            weights = whole - body + weight_bytes(model.model.language_model, bits)
            kept = [state_bytes(config, LONG, kv) / 1e9 for kv in (None, 8, 4)]
            most = [(weights + question_bytes(config, SIZE, LONG - 512, 512, 1024, kv)) / 1e9 for kv in (None, 8, 4)]
            cells = (" / ".join(f"{size:.2f}" for size in sizes) for sizes in (kept, most))
            yield f"| {name}, {bits} | {weights / 1e9:.2f} GB | {' | '.join(f'{cell} GB' for cell in cells)} |\n"


def tables() -> str:
    return "\n".join("".join(table()) for table in (costs, ceilings, shares, long_context))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, metavar="FILE", help="write the tables into a page")
    into = parser.parse_args().into
    if into is None:
        print(tables())
        return
    text = into.read_text(encoding="utf-8")
    made = re.sub(r"(?s)(?<=<!-- roofline -->\n).*?(?=<!-- end -->)", lambda _: f"\n{tables()}\n", text, count=1)
    into.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
