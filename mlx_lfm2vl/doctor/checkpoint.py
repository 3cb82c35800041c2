"""A random checkpoint of seven million weights, and prompts for it, that are made rather than stored.

Every number comes from integers of SplitMix64 and is the same on each machine. Shapes are those that Metal's fast
kernels take: heads of 64 in text and tower, four queries to a key, rows of 512. Weights of the language model are `sign
* scale * k` with k from -8 to 7, a sign for each 64 of a row and a scale that is a power of two. So bfloat16, 8 bits
and 4 bits all hold them exactly, and one set of float32 numbers is right for all of them: what differs is the kernels.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import config_of
from ..models.families import NETWORKS
from ..weights.names import is_conv_kernel, parameters

GROUP = 64  # weights of a row that share a scale when quantised
IMAGE_TOKEN = 511
VOCABULARY = 512
STEPS = 6  # last tokens of each prompt that are run one by one behind the others
LEVEL_DEVIATION = math.sqrt((16**2 - 1) / 12)  # of the numbers from -8 to 7

CONFIG: dict[str, Any] = {
    "architectures": ["Lfm2VlForConditionalGeneration"],
    "model_type": "lfm2_vl",
    "dtype": "bfloat16",
    "downsample_factor": 2,
    "eos_token_id": 7,
    "image_token_id": IMAGE_TOKEN,
    "projector_bias": True,
    "projector_hidden_act": "gelu",
    "projector_hidden_size": 256,
    "projector_use_layernorm": False,
    "tie_word_embeddings": True,
    "text_config": {
        "model_type": "lfm2",
        "block_auto_adjust_ff_dim": False,
        "conv_L_cache": 3,
        "conv_bias": False,
        "hidden_size": 512,
        "intermediate_size": 512,
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        "max_position_embeddings": 32768,
        "norm_eps": 1e-05,
        "num_attention_heads": 8,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
        "vocab_size": VOCABULARY,
    },
    "vision_config": {
        "model_type": "siglip2_vision_model",
        "attention_dropout": 0.0,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 128,
        "intermediate_size": 256,
        "layer_norm_eps": 1e-06,
        "num_attention_heads": 2,
        "num_channels": 3,
        "num_hidden_layers": 2,
        "num_patches": 256,
        "patch_size": 16,
        "vision_use_head": False,
    },
}
SEEDS = {  # by the ends of names; of others it is the name
    "embed_tokens.weight": "embed",
    "embedding_norm.weight": "embedding_norm",
    "position_embedding.weight": "positions",
}
GRIDS = ((8, 8), (8, 8), (6, 10))  # patches of each view: two tiles and a thumbnail


@dataclass(frozen=True)
class Prompts:
    """The prompts that the checkpoint is asked.

    Args:
        picture: (1, T) token ids, with an image token for each four patches of the views.
        text: (1, shorter) token ids.
        pixel_values: (views, most patches, numbers of a patch) float32, padded with zeros.
        spatial_shapes: (views, 2) rows and columns of patches.
    """

    picture: np.ndarray
    text: np.ndarray
    pixel_values: np.ndarray
    spatial_shapes: np.ndarray

    @property
    def pixel_attention_mask(self) -> np.ndarray:
        """(views, most patches), 1 where there is a patch."""
        counts = self.spatial_shapes.prod(axis=1, keepdims=True)
        return (np.arange(self.pixel_values.shape[1]) < counts).astype(np.int32)


def prompts(width: int = 768) -> Prompts:
    """The prompts, the same on each machine. `width`: numbers of a patch."""
    images = sum(height * width for height, width in GRIDS) // 4
    picture = np.concatenate([_ids("before", 10), np.full(images, IMAGE_TOKEN), _ids("after", 19)])
    most = max(height * width for height, width in GRIDS)
    pixels = np.zeros((len(GRIDS), most, width), np.float32)
    for view, (rows, columns) in enumerate(GRIDS):
        patches = rows * columns
        halves = _nibbles(f"view {view}", 2 * patches * width).reshape(patches, width, 2).astype(np.float32)
        pixels[view, :patches] = (halves[..., 0] * 16 + halves[..., 1] - 127.5) / 127.5
    return Prompts(picture[None], _ids("text", 43)[None], pixels, np.array(GRIDS))


def tensors() -> dict[str, np.ndarray]:
    """The weights as float32, by the names that transformers gives them."""
    return weights(CONFIG, _seed)


def _seed(name: str) -> str:
    if (known := next((seed for end, seed in SEEDS.items() if name.endswith(end)), None)) is not None:
        return known
    return f"{name.removesuffix('.bias')} bias" if name.endswith(".bias") else name.removesuffix(".weight")


def weights(config: dict[str, Any], seed: Callable[[str], str]) -> dict[str, np.ndarray]:
    """The weights of a configuration as float32, by the names that transformers gives them, as modules here have them;
    `seed` makes of a name what its numbers belong to. The shapes are those of the network, which holds no arrays."""
    parsed = config_of(config)
    made: dict[str, np.ndarray] = {}
    for name, array in parameters(NETWORKS[type(parsed)](parsed)).items():
        shape = tuple(array.shape)
        if is_conv_kernel(name):
            shape = (shape[0], 1, *shape[1:-1])
        if len(shape) == 1:
            made[name] = _vector(seed(name), shape[0], 0.0 if name.endswith("bias") else 1.0)
            continue
        gain = 1.2
        if name.endswith("embed_tokens.weight"):
            gain = 3.2
        elif name.endswith("position_embedding.weight"):
            gain = 0.6 * math.sqrt(shape[1])
        made[name] = _matrix(seed(name), (shape[0], math.prod(shape[1:])), gain).reshape(shape)
    return made


def _nibbles(name: str, count: int) -> np.ndarray:
    """`count` numbers from 0 to 15 that belong to `name`: sixteen of each output of SplitMix64."""
    start = np.uint64(zlib.crc32(name.encode()) << 32)
    mixed = (np.arange(1, -(-count // 16) + 1, dtype=np.uint64) + start) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    shifts = np.arange(0, 64, 4, dtype=np.uint64)
    return ((mixed[:, None] >> shifts) & np.uint64(15)).astype(np.int8).reshape(-1)[:count]


def _ids(name: str, count: int) -> np.ndarray:
    """Token ids that are no image token."""
    digits = _nibbles(name, 3 * count).reshape(count, 3).astype(np.int64)
    return (digits @ (256, 16, 1)) % (VOCABULARY - 1)


def _matrix(name: str, shape: tuple[int, int], gain: float) -> np.ndarray:
    """(out, in) of about `gain / sqrt(in)`, exact in bfloat16 and in groups of 4 or 8 bits."""
    scale = 2.0 ** round(math.log2(gain / math.sqrt(shape[1]) / LEVEL_DEVIATION))
    levels = _nibbles(name, math.prod(shape)).reshape(shape).astype(np.float32) - 8
    if shape[1] % GROUP == 0:
        levels[:, 0::GROUP], levels[:, 1::GROUP] = -8, 7  # both ends in each group, as the quantiser takes its scale
        groups = shape[1] // GROUP
        signs = 1 - 2 * (_nibbles(f"{name} signs", shape[0] * groups).reshape(shape[0], groups) & 1)
        levels *= np.repeat(signs, GROUP, axis=1)
    return levels * np.float32(scale)


def _vector(name: str, size: int, centre: float) -> np.ndarray:
    """(size,) about `centre`, in steps of 1/32."""
    return (centre + (_nibbles(name, size).astype(np.float32) - 8) / 32).astype(np.float32)
