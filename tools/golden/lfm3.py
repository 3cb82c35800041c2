"""The small random LFM3-VL checkpoint `lfm3`, its prompts, and what the reference makes of them.

The checkpoint has a window of 24 tokens, so that most prompts are longer, all kinds of layers, grouped queries, gates
and half-turned heads; pictures of 4 to 64 tokens. Keys of the arrays of a case are those of stages.py, but

pixel_deltas                 (P, 3, 2, 16, 16) uint8, the patches as the reference flattens them; two cumulative sums
                             give the levels, as there
image_grid_thw               (pictures, 3) int64: frames, rows and columns of patches
video_deltas, video_grid_thw the same of videos
vision_output                (rows, d): of the encoder, which has no norm behind its layers
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, Lfm3VlConfig, Lfm3VlForConditionalGeneration

from .cases import BATCH, TURNS, WHAT, Case, user
from .checkpoints import set_weights, write_json
from .pictures import draw
from .stages import greedy, language, load_as, subset
from .tokenizer import write_lfm3_tokenizer

NAME, SEED = "lfm3", 33
TOKENS = (
    *("<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|video_pad|>", "<|image_pad|>", "<think>", "</think>"),
)
IDS = {token: id for id, token in enumerate(TOKENS)}

CONFIG: dict[str, Any] = {
    "architectures": ["Lfm3VlForConditionalGeneration"],
    "dtype": "float32",
    "image_token_id": IDS["<|image_pad|>"],
    "model_type": "lfm3_vl",
    "projector_hidden_size": 56,
    "text_config": {
        "bos_token_id": IDS["<|startoftext|>"],
        "eos_token_id": IDS["<|im_end|>"],
        "head_dim": 16,
        "hidden_size": 64,
        "intermediate_size": 112,
        "layer_types": ["conv", "sliding_attention", "conv", "full_attention", "sliding_attention", "conv"],
        "max_position_embeddings": 32768,
        "model_type": "lfm3",
        "num_attention_heads": 4,
        "num_hidden_layers": 6,
        "num_key_value_heads": 2,
        "pad_token_id": IDS["<|pad|>"],
        "sliding_window": 24,
        "vocab_size": 640,
    },
    "video_token_id": IDS["<|video_pad|>"],
    "vision_config": {
        "hidden_size": 48,
        "intermediate_size": 64,
        "layer_types": ["conv", "full_attention", "conv"],
        "model_type": "lfm3_vl_vision",
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
    },
    "vision_end_token_id": IDS["<|vision_end|>"],
    "vision_start_token_id": IDS["<|vision_start|>"],
}
_PIXELS: dict[str, Any] = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "merge_size": 2,
    "patch_size": 16,
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "temporal_patch_size": 2,
}
PROCESSOR: dict[str, Any] = {
    "image_processor": _PIXELS
    | {
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"longest_edge": 64 * 32**2, "shortest_edge": 4 * 32**2},
    },
    "processor_class": "Lfm3VlProcessor",
    "video_processor": _PIXELS
    | {
        "do_sample_frames": True,
        "fps": 2,
        "max_frames": 24,
        "min_frames": 4,
        "return_metadata": False,
        "size": {"longest_edge": 96 * 32**2, "shortest_edge": 8 * 32**2},
        "video_processor_type": "Qwen3VLVideoProcessor",
    },
}


def _asked(*parts: str) -> dict[str, Any]:
    """A user's turn of texts, pictures (`@name`) and videos (`%name`)."""
    content = [
        {"type": "video", "clip": part[1:]} if part.startswith("%") else user(part)["content"][0] for part in parts
    ]
    return {"role": "user", "content": content}


VIDEOS: dict[str, tuple[str, int, int, int, int]] = {  # picture, width, height, frames, frames a second
    "clip": ("photo", 160, 96, 24, 8),
    "odd": ("landscape", 60, 100, 7, 2),
    "slow": ("square", 96, 96, 10, 4),
}
_LONG = "Please read the text and write it down in one line: the small one is near the large one. " * 12

CASES: list[Case] = [
    Case(NAME, "landscape", [[user("@landscape", WHAT)]]),
    Case(NAME, "portrait", [[user("@portrait", WHAT)]]),
    Case(NAME, "small", [[user("@small", WHAT)]]),
    Case(NAME, "photo", [[user("@photo", WHAT)]]),
    Case(NAME, "column", [[user("@column", WHAT)]]),
    Case(NAME, "strip", [[user("@strip", WHAT)]]),
    Case(NAME, "several", [[user("@landscape", " and ", "@small", " and ", "@tall", WHAT)]]),
    Case(NAME, "fewer-pixels", [[user("@photo", WHAT)]], {"size": {"shortest_edge": 4096, "longest_edge": 16384}}),
    Case(NAME, "text", [[user("How many shapes are there?")]]),
    Case(NAME, "long", [[user(_LONG)]]),
    Case(NAME, "turns", [TURNS]),
    Case(NAME, "batch-left", BATCH, {}, "left"),
    Case(NAME, "batch-right", BATCH, {}, "right"),
    Case(NAME, "video", [[_asked("%clip", "What moves?")]]),
    Case(NAME, "video-odd", [[_asked("What is ", "%odd", "?")]]),
    Case(NAME, "videos", [[_asked("%slow", "@small", "%odd", "Compare these.")]]),
    Case(
        NAME, "batch-video", [[_asked("%slow", "What?")], [_asked("@small", "And here? ")], [user("How?")]], {}, "left"
    ),
    Case(NAME, "batch-text", [[user("How many?")], [user(_LONG)], [user("@small", WHAT)]], {}, "left"),
]


def draw_video(name: str) -> list[Image.Image]:
    """The frames of a video: a window that moves over a picture."""
    picture, width, height, count, _ = VIDEOS[name]
    whole = draw(picture)
    steps = [((whole.width - width) * n // count, (whole.height - height) * n // count) for n in range(count)]
    return [whole.crop((left, top, left + width, top + height)) for left, top in steps]


def write_video(name: str, folder: Path) -> None:
    """Writes NAME.png, an animation without loss."""
    first, *rest = draw_video(name)
    duration = 1000 // VIDEOS[name][4]
    first.save(folder / f"{name}.png", save_all=True, append_images=rest, duration=duration, loop=0, optimize=True)


def write_checkpoint(folder: Path) -> None:
    """Writes the checkpoint into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", CONFIG)
    model = Lfm3VlForConditionalGeneration(Lfm3VlConfig.from_pretrained(folder)).eval()
    set_weights(model, SEED)
    model.save_pretrained(folder)  # under the makers' names, which are not those of the reference's modules
    ids = {name: CONFIG["text_config"][name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(folder / "generation_config.json", {"_from_model_config": True, **ids})
    write_lfm3_tokenizer(TOKENS, CONFIG["text_config"]["vocab_size"], folder)
    write_json(folder / "processor_config.json", PROCESSOR)


def load(folder: Path) -> tuple[Any, Any]:
    """The reference's model (float32, eager attention) and processor of `folder`."""
    model = load_as(folder, torch.float32, "eager", Lfm3VlForConditionalGeneration)
    return model, AutoProcessor.from_pretrained(folder)


@torch.no_grad()
def freeze(case: Case, model: Any, processor: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What the reference makes of `case`: arrays (see above), and texts {"prompts": [...], "generated_text": [...]}."""
    rng = np.random.default_rng([3, *case.id.encode()])
    pictures = [draw(name) for names in case.picture_names for name in names]
    prompts = [processor.apply_chat_template(turns, add_generation_prompt=True) for turns in case.conversations]
    options: dict[str, Any] = {"padding": True, "padding_side": case.padding_side} if case.padding_side else {}
    if case.options:
        options["images_kwargs"] = case.options
    if clips := [name for turns in case.conversations for name in clip_names(turns)]:
        options["videos"] = [np.stack([np.asarray(frame) for frame in draw_video(name)]) for name in clips]
        rates = [(VIDEOS[name][3], VIDEOS[name][4]) for name in clips]
        options["video_metadata"] = [{"total_num_frames": count, "fps": rate} for count, rate in rates]
    inputs = processor(images=pictures or None, text=prompts, return_tensors="pt", **options)
    arrays = {key: inputs[key].numpy() for key in ("input_ids", "attention_mask")}
    if pictures:
        arrays |= {"pixel_deltas": _deltas(inputs["pixel_values"]), "image_grid_thw": inputs["image_grid_thw"].numpy()}
        arrays |= _vision(inputs["pixel_values"], inputs["image_grid_thw"], model, rng)
    if clips:
        arrays["video_deltas"] = _deltas(inputs["pixel_values_videos"])
        arrays["video_grid_thw"] = inputs["video_grid_thw"].numpy()
    arrays |= language(inputs, model, rng)
    if case.padding_side != "right":
        arrays |= greedy(inputs, model, case.id)
    texts: dict[str, Any] = {"prompts": prompts}
    if "generated" in arrays:
        texts["generated_text"] = processor.batch_decode(arrays["generated"], skip_special_tokens=True)
    return arrays, texts


def clip_names(turns: list[dict[str, Any]]) -> list[str]:
    """The videos of a conversation, in their order."""
    items = [item for turn in turns if isinstance(turn["content"], list) for item in turn["content"]]
    return [item["clip"] for item in items if item["type"] == "video"]


def _deltas(patches: torch.Tensor) -> np.ndarray:
    values = patches.numpy()
    levels = np.rint(values * 127.5 + 127.5).astype(np.uint8)
    if not np.array_equal((levels.astype(np.float32) - np.float32(127.5)) / np.float32(127.5), values):
        raise AssertionError("pixel values are not 8-bit levels")
    deltas = levels.reshape(-1, 3, 2, 16, 16)
    for axis in (4, 3):
        deltas = np.diff(deltas, axis=axis, prepend=np.uint8(0))
    return deltas


def _vision(pixels: torch.Tensor, grids: torch.Tensor, model: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    rows = subset(len(pixels), rng)
    output = model.model.vision_tower(pixels, grid_thw=grids, output_hidden_states=True)
    features = torch.cat(model.get_image_features(pixels, grids).pooler_output)
    feature_rows = subset(len(features), rng)
    return {
        "patch_rows": rows,
        "vision_hidden_states": torch.stack([state[rows] for state in output.hidden_states]).numpy(),
        "vision_output": output.last_hidden_state[rows].numpy(),
        "feature_rows": feature_rows,
        "image_features": features[feature_rows].numpy(),
    }
