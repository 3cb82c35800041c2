"""The demo model in the reference implementation: made, run without loops over pictures, read and written.

Contract: the module is transformers' own; `check_against_reference` holds the faster forward pass to it. Stored weights
are bfloat16 under the hub's names.
"""

from __future__ import annotations

import math
import os
import pathlib

from .. import reference_shim  # noqa: F401  # before transformers

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration

from . import files, tasks, vocabulary
from .batches import collate, to_device
from .encoding import CELL, IGNORED, KINDS, PATCH, encode

SPREAD = 0.8  # standard deviation of a coordinate's targets over its neighbours, in steps between coordinates
HUB_TOWER = "model.vision_tower.vision_model."  # the hub's repositories keep the older name of the tower


def build() -> Lfm2VlForConditionalGeneration:
    config = files.config()
    model = Lfm2VlForConditionalGeneration(Lfm2VlConfig(**{k: v for k, v in config.items() if k != "dtype"})).float()
    parts = model.model.vision_tower.embeddings
    filters, places = first_filters(len(parts.patch_embedding.weight)), first_places(parts.position_embedding_size)
    with torch.no_grad():
        parts.patch_embedding.weight.copy_(
            torch.from_numpy(np.concatenate([filters, np.zeros((places.shape[1], 768))]))
        )
        parts.position_embedding.weight[:, -places.shape[1] :] = torch.from_numpy(places)
        words = model.model.language_model.embed_tokens.weight
        words[vocabulary.WORDS_SIZE :] = first_coordinates(words.shape[1], float(words.std()))
    return model


def first_coordinates(width: int, scale: float) -> torch.Tensor:
    """Slow waves along the numbers, each in a direction by lot, (100, width): neighbours begin alike."""
    n = torch.arange(1, len(vocabulary.COORDINATES))[:, None] / len(vocabulary.COORDINATES)
    waves = torch.cos(math.pi * n * torch.arange(12))
    return torch.randn(waves.shape[1], width).T.mul(scale / math.sqrt(6)).matmul(waves.T).T


def first_places(side: int) -> np.ndarray:
    """Slow waves over the columns and rows of the position table, (side * side, 6): what its last channels start from.

    No patch filter starts in these channels, so that a patch's place cannot drown in what it shows.
    """
    middle = (np.arange(side) + 0.5) / side
    y, x = np.meshgrid(middle, middle, indexing="ij")
    waves = [math.sqrt(2) * np.cos(math.pi * k * axis) for k in (1, 2, 3) for axis in (x, y)]
    return np.stack(waves, -1).reshape(side * side, -1).astype(np.float32)


def first_filters(number: int) -> np.ndarray:
    """Low cosine waves of brightness and of two colour differences, (number - 6, 768): a patch embedding's start.

    They carry a patch's outline and hue at once, which random filters drown in pixel noise.
    """
    n = np.arange(PATCH)
    waves = np.cos(np.pi * (n[None] + 0.5) * n[:, None] / PATCH) * np.sqrt(2 / PATCH)
    waves[0] /= np.sqrt(2)
    order = sorted(((u, v) for u in n for v in n), key=lambda p: (p[0] + p[1], p))
    number -= 6
    opponents = (((1, 1, 1), number // 2), ((1, -1, 0), number // 4), ((0.5, 0.5, -1), number - 3 * number // 4))
    filters = []
    for mix, count in opponents:
        hue = np.array(mix) / np.linalg.norm(mix)
        for u, v in order[:count]:
            loud = 0.25 if u + v else 0.06  # the mean would drown the rest
            filters.append(loud * (waves[u][:, None, None] * waves[v][None, :, None] * hue).reshape(-1))
    return np.stack(filters).astype(np.float32)


class Dense(torch.nn.Module):
    """Linear heads that tell what each patch shows: the classes of `KINDS`, the ways to an object's middle and edges,
    where these edges lie, the cells it covers; and to which picture an image token of the text model belongs. They
    teach the tower and the text model's first attention, and are thrown away after training.
    """

    def __init__(self, width: int, text_width: int):
        super().__init__()
        self.sizes = (*(kind + 1 for kind in KINDS), *(len(vocabulary.COORDINATES),) * 4, 6, (PATCH // CELL) ** 2)
        self.heads = torch.nn.Linear(width, sum(self.sizes))
        self.picture = torch.nn.Linear(text_width, 3)

    def which(self, hidden: torch.Tensor, batch: dict) -> torch.Tensor:
        """The loss over all image tokens, (image tokens, text width), of samples of several pictures."""
        return F.cross_entropy(self.picture(hidden), batch["pictures"])

    def forward(self, features: torch.Tensor, batch: dict) -> torch.Tensor:
        """The loss over all patches of the views, (views, patches, width)."""
        *kinds, ways, covered = self.heads(features).flatten(0, 1).split(self.sizes, dim=-1)
        kinds, edges = kinds[: len(KINDS)], kinds[len(KINDS) :]
        labels = batch["named"].flatten(0, 1)
        loss = F.binary_cross_entropy_with_logits(covered, batch["covered"].flatten(0, 1))
        for part, label in zip(kinds, labels.unbind(-1), strict=True):
            there = label > 0
            if there.any():  # half for the patches that show something of the kind, half for all of them
                loss = loss + 0.5 * F.cross_entropy(part, label) + 0.5 * F.cross_entropy(part[there], label[there])
        there = labels[:, 0] > 0
        if there.any():
            loss = loss + 0.2 * 3 * F.smooth_l1_loss(ways[there], batch["ways"].flatten(0, 1)[there])
            for part, label in zip(edges, batch["edges"].flatten(0, 1)[there].unbind(-1), strict=True):
                loss = loss + near(part[there], label).mean() / len(edges)
        return loss


def near(scores: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
    """Cross entropies with targets that lie mostly on a coordinate and a little on its neighbours.

    ``scores``: (places, 101) over all coordinates; ``coordinates``: (places,) indices.
    """
    away = torch.arange(scores.shape[-1], device=scores.device) - coordinates[:, None]
    return -(torch.softmax(-((away / SPREAD) ** 2) / 2, -1) * scores.log_softmax(-1)).sum(-1)


def answer_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean cross entropy over the answers' tokens; coordinates of several digits count as `near` does."""
    placed = targets >= vocabulary.WORDS_SIZE
    if not placed.any():
        return F.cross_entropy(logits, targets)
    losses = F.cross_entropy(logits, targets, reduction="none")
    digit = encode(vocabulary.COORDINATES[0])
    numbers = [*digit, *range(vocabulary.WORDS_SIZE, vocabulary.VOCAB_SIZE)]
    others = logits[placed].logsumexp(-1) - logits[placed][:, numbers].logsumexp(-1)
    return losses.masked_scatter(
        placed, others + near(logits[placed][:, numbers], targets[placed] - vocabulary.WORDS_SIZE + 1)
    ).mean()


def see(model: Lfm2VlForConditionalGeneration, patches: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """The tower's features, (views, patches, width), of views that share one grid, without loops over them."""
    tower = model.model.vision_tower
    pixels = patches.float() / 127.5 - 1
    table = tower.embeddings.position_embedding.weight
    side = int(math.sqrt(table.shape[0]))
    table = table.reshape(side, side, -1).permute(2, 0, 1)[None]
    places = F.interpolate(table, size=grid, mode="bilinear", align_corners=False, antialias=True)
    x = tower.embeddings.patch_embedding(pixels) + places.flatten(2).transpose(1, 2)
    for layer in tower.encoder.layers:
        x = layer(x, None)
    return tower.post_layernorm(x)


def forward(model: Lfm2VlForConditionalGeneration, batch: dict) -> tuple[torch.Tensor, dict, torch.Tensor]:
    """(last hidden states, tower features by grid, the image tokens' states behind the first attention)."""
    core = model.model
    features = {grid: see(model, patches, grid) for grid, patches in batch["patches"].items()}
    images = {
        (rows, cols): core.multi_modal_projector(seen.reshape(len(seen), rows, cols, -1)).flatten(1, 2)
        for (rows, cols), seen in features.items()
    }
    if len(images) == 1:
        (image,) = images.values()
    else:
        image = torch.cat([images[grid][index] for grid, index in batch["views"]])
    embeds = core.language_model.embed_tokens(batch["ids"])
    embeds = embeds.masked_scatter((batch["ids"] == vocabulary.IMAGE)[..., None], image)
    # Padding stands on the right, behind everything that is scored: causal layers need no mask for it.
    mask = {"full_attention": apart(batch["turns"]) if batch["apart"] else None, "conv": None}
    early = []
    first = core.config.text_config.layer_types.index("full_attention")
    hook = core.language_model.layers[first].register_forward_hook(lambda layer, given, made: early.append(made))
    out = core.language_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
    hook.remove()
    return out.last_hidden_state, features, early[0][batch["ids"] == vocabulary.IMAGE]


def apart(turns: torch.Tensor) -> torch.Tensor:
    """(samples, 1, length, length), true where a token may look: back, at the pictures and at its own turn."""
    length = turns.shape[1]
    back = torch.ones(length, length, dtype=torch.bool, device=turns.device).tril()
    same = turns[:, :, None] == turns[:, None, :]
    return (back & (same | (turns == 0)[:, None, :]))[:, None]


def answers(model: Lfm2VlForConditionalGeneration, hidden: torch.Tensor, labels: torch.Tensor) -> tuple:
    """Logits and targets at the positions whose next token is scored."""
    scored = labels[:, 1:] != IGNORED
    return model.lm_head(hidden[:, :-1][scored]), labels[:, 1:][scored], scored


def check_against_reference(model: Lfm2VlForConditionalGeneration, device: torch.device) -> None:
    """Raises AssertionError unless this file's forward pass equals the reference's own."""
    for task, size in (("ask", (128, 128)), ("chat", (96, 160)), ("compare", (96, 128)), ("tiled", (128, 384))):
        samples = [tasks.make(task, "validate", i, size) for i in range(3)]
        batch = to_device(collate(samples), device) | {"apart": False}
        views = [batch["patches"][grid][index].float() / 127.5 - 1 for grid, index in batch["views"]]
        most = max(len(v) for v in views)
        with torch.no_grad():
            mine = model.lm_head(forward(model, batch)[0])
            theirs = model(
                input_ids=batch["ids"],
                pixel_values=torch.stack([F.pad(v, (0, 0, 0, most - len(v))) for v in views]),
                spatial_shapes=torch.tensor([grid for grid, _ in batch["views"]]),
                pixel_attention_mask=torch.stack(
                    [(torch.arange(most, device=device) < len(v)).to(torch.int32) for v in views]
                ),
            ).logits
        worst = float((mine - theirs).abs().max() / theirs.abs().max())
        assert worst < 1e-4, f"the forward pass for training differs from the reference's by {worst:.2e} for {task}"


def load_folder(model: Lfm2VlForConditionalGeneration, folder: pathlib.Path) -> None:
    """Takes the weights that `export` wrote. Raises KeyError where one is missing."""
    stored = load_file(folder / "model.safetensors")
    names = {
        name: name.replace("model.vision_tower.", HUB_TOWER) for name in model.state_dict() if "lm_head" not in name
    }
    model.load_state_dict({name: stored[hub].float() for name, hub in names.items()}, strict=False)  # the head is tied


def export(model: Lfm2VlForConditionalGeneration, folder: pathlib.Path) -> None:
    """Writes the demo folder's files and the weights, in bfloat16 under the hub's names."""
    files.write(folder)
    tensors = {
        name.replace("model.vision_tower.", HUB_TOWER): p.detach().to(torch.bfloat16).contiguous().cpu()
        for name, p in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(tensors, folder / "model.safetensors.new", metadata={"format": "pt"})
    (folder / "model.safetensors.new").chmod(0o644)
    os.replace(folder / "model.safetensors.new", folder / "model.safetensors")
    print(f"{folder}: {sum(t.numel() for t in tensors.values()):,} parameters")
