"""Runs the reference on a case and keeps what every stage gives.

Keys of the arrays of a case (B prompts, T tokens, V views, P = all true patches of all views in order; `rows` are a
seeded subset, everything where it is small, so that files stay small):

input_ids, attention_mask    (B, T) int64
pixel_deltas                 (P, 16, 16, 3) uint8: the resized pictures; two cumulative sums modulo 256 (down, then
                             across) give 8-bit levels, and (levels - 127.5) / 127.5 the reference's pixel_values,
                             bit for bit
pixel_attention_mask         (V, max_num_patches) int32
spatial_shapes               (V, 2) int64: rows and columns of patches
image_rows, image_cols       (pictures,) int64: grid of tiles
image_sizes                  (pictures, 2) int64: height, width of the smart resize
patch_rows                   which of the P patches the next three hold
positions                    (rows, d): resized position embeddings
vision_hidden_states         (layers + 1, rows, d): after the embeddings and after every layer
vision_output                (rows, d): after post_layernorm
feature_rows, image_features which projector outputs, in the order of the image tokens, and their values (rows, hidden)
token_rows                   (rows, 2): prompt and position; padding is never among them
hidden_states                (layers + 1, rows, hidden): the reference's tuple, the last one after the final norm
logits                       (rows, vocab)
logits_bfloat16              (rows, vocab) float32: the same with weights and activations in bfloat16, on the CPU, with
                             transformers' usual attention (sdpa); of the checkpoints of ROUNDED only
attentions                   (attention layers, B, heads, T, T), where T <= 48
labels, loss                 (B, T) int64 with -100 where ignored; scalar
answer_attentions            (attention layers, heads, 8, image tokens): the weights that `generate` returns of
                             the first eight generated tokens; of the cases of ATTENDED only
generated                    (B, 24) int64: greedy tokens;  margins (B, 24): how far the second best logit was below
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoProcessor, Lfm2VlForConditionalGeneration

from .cases import Case
from .pictures import draw

ROUNDED = ("gen2", "gen25")  # checkpoints that are run in bfloat16 too
ATTENDED = ("gen2-small", "gen2-tiled", "gen2-tiled-no-thumbnail", "gen2-several", "untied-landscape")
NEW_TOKENS = 24
ATTENDED_TOKENS = 8
MOST_ROWS = 24
MOST_TOKENS_FOR_ATTENTIONS = 48
SMALLEST_MARGIN = 1e-3  # a smaller one could turn with the order of a sum


def load(folder: str) -> tuple[Any, Any]:
    """The reference's model (float32, eager attention, so that it returns attentions) and processor of `folder`."""
    return load_as(folder, torch.float32, "eager"), AutoProcessor.from_pretrained(folder)


def load_as(
    folder: str | Path, dtype: torch.dtype, attention: str, network: Any = Lfm2VlForConditionalGeneration
) -> Any:
    """The reference's model of `folder` in `dtype`, with transformers' `attn_implementation`."""
    model, report = network.from_pretrained(
        folder, dtype=dtype, attn_implementation=attention, output_loading_info=True
    )
    if any(report.values()):
        raise ValueError(f"the reference does not take the weights of {folder} as they are: {report}")
    return model.eval()


@torch.no_grad()
def freeze(
    case: Case, model: Any, processor: Any, rounded: Any | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What the reference makes of `case`: arrays (see above), and texts {"prompts": [...], "generated_text": [...]}.

    `rounded` is the model in bfloat16, where its logits are wanted.
    """
    rng = np.random.default_rng([3, *case.id.encode()])
    pictures = [[draw(name) for name in names] for names in case.picture_names]
    prompts = [processor.apply_chat_template(turns, add_generation_prompt=True) for turns in case.conversations]
    options = dict(case.options)
    if case.padding_side:
        options |= {"padding": True, "padding_side": case.padding_side}
    inputs = processor(images=pictures if any(pictures) else None, text=prompts, return_tensors="pt", **options)
    arrays = {key: inputs[key].numpy() for key in ("input_ids", "attention_mask")}
    if any(pictures):
        arrays |= _pictures(inputs, pictures, processor, case.options)
        arrays |= _vision(inputs, model, rng)
    arrays |= language(inputs, model, rng)
    if rounded is not None:
        prompt, position = arrays["token_rows"].T
        # Pixels stay float32: the tower casts them itself.
        arrays["logits_bfloat16"] = rounded(**inputs).logits[prompt, position].float().numpy()
    if case.padding_side != "right":
        arrays |= greedy(inputs, model, case.id)
    texts: dict[str, Any] = {"prompts": prompts}
    if "generated" in arrays:
        texts["generated_text"] = processor.batch_decode(arrays["generated"], skip_special_tokens=True)
    return arrays, texts


def _pictures(inputs: Any, pictures: list[Any], processor: Any, options: dict[str, Any]) -> dict[str, np.ndarray]:
    image_options = {key: value for key, value in options.items() if key != "use_image_special_tokens"}
    nested = [group for group in pictures if group]
    info = processor.image_processor(nested, return_row_col_info=True, return_tensors="pt", **image_options)
    if not torch.equal(info["pixel_values"], inputs["pixel_values"]):
        raise AssertionError("the image processor alone gives other pixels than the processor")
    values, mask = inputs["pixel_values"].numpy(), inputs["pixel_attention_mask"].numpy()
    patches = values[mask == 1]
    levels = np.rint(patches * 127.5 + 127.5).astype(np.uint8)
    rebuilt = (levels.astype(np.float32) - np.float32(127.5)) / np.float32(127.5)
    if not np.array_equal(rebuilt, patches) or values[mask == 0].any():
        raise AssertionError("pixel values are not 8-bit levels padded with zeros")
    deltas = levels.reshape(-1, 16, 16, 3)
    for axis in (2, 1):
        deltas = np.diff(deltas, axis=axis, prepend=np.uint8(0))
    return {
        "pixel_deltas": deltas,
        "pixel_attention_mask": mask,
        "spatial_shapes": inputs["spatial_shapes"].numpy(),
        "image_rows": np.array(info["image_rows"]),
        "image_cols": np.array(info["image_cols"]),
        "image_sizes": np.array(info["image_sizes"]),
    }


def _vision(inputs: Any, model: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    shapes, valid = inputs["spatial_shapes"], inputs["pixel_attention_mask"].bool()
    rows = subset(int(valid.sum()), rng)
    embeddings = model.model.vision_tower.embeddings
    table = embeddings.position_embedding.weight.reshape(16, 16, -1)
    positions = embeddings.resize_positional_embeddings(table, shapes, max_length=valid.shape[1])
    output = model.get_image_features(
        inputs["pixel_values"], shapes, inputs["pixel_attention_mask"], output_hidden_states=True
    )
    features = torch.cat(output.pooler_output)
    feature_rows = subset(len(features), rng)
    return {
        "patch_rows": rows,
        "positions": positions[valid][rows].numpy(),
        "vision_hidden_states": torch.stack([state[valid][rows] for state in output.hidden_states]).numpy(),
        "vision_output": output.last_hidden_state[valid][rows].numpy(),
        "feature_rows": feature_rows,
        "image_features": features[feature_rows].numpy(),
    }


def language(inputs: Any, model: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The arrays of a case that the backbone and the head make."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    labels = ids.clone()
    labels[~mask | (ids == getattr(model.config, "image_token_id", -1))] = -100
    labels[:, : ids.shape[1] // 4] = -100
    # The first token after padding would be predicted at a padding position, where nothing is defined.
    labels[torch.arange(len(ids)), mask.int().argmax(1)] = -100
    output = model(**inputs, labels=labels, output_hidden_states=True, output_attentions=True)
    where = mask.nonzero().numpy()  # (valid tokens, 2)
    last = [int(np.flatnonzero(where[:, 0] == prompt)[-1]) for prompt in range(len(ids))]
    rows = where[subset(len(where), rng, last)]
    prompt, position = rows.T
    arrays = {
        "token_rows": rows,
        "hidden_states": torch.stack([state[prompt, position] for state in output.hidden_states]).numpy(),
        "logits": output.logits[prompt, position].numpy(),
        "labels": labels.numpy(),
        "loss": output.loss.numpy(),
    }
    if ids.shape[1] <= MOST_TOKENS_FOR_ATTENTIONS:
        arrays["attentions"] = torch.stack(output.attentions).numpy()
    return arrays


def greedy(inputs: Any, model: Any, name: str) -> dict[str, np.ndarray]:
    """The greedy tokens of a case."""
    output = model.generate(
        **inputs,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        output_logits=True,
        output_attentions=name in ATTENDED,
        return_dict_in_generate=True,
    )
    tokens = output.sequences[:, inputs["input_ids"].shape[1] :].numpy()
    best = torch.stack(output.logits, 1).topk(2).values
    margins = (best[..., 0] - best[..., 1]).numpy()
    if tokens.shape[1] != NEW_TOKENS or margins.min() < SMALLEST_MARGIN:
        raise ValueError(f"{name}: {tokens.shape[1]} tokens, smallest margin {margins.min():.1e}; change the prompt")
    arrays = {"generated": tokens, "margins": margins}
    if name in ATTENDED:
        image = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0]
        steps = [torch.stack([layer[0, :, -1, image] for layer in step]) for step in output.attentions]
        arrays["answer_attentions"] = torch.stack(steps[:ATTENDED_TOKENS], 2).numpy()
    return arrays


def subset(count: int, rng: np.random.Generator, always: list[int] | None = None) -> np.ndarray:
    """The rows that are kept of so many."""
    if count <= MOST_ROWS:
        return np.arange(count)
    chosen = rng.choice(count, MOST_ROWS, replace=False)
    return np.unique(np.concatenate([chosen, [0, count - 1], np.array(always or [], np.int64)]))
