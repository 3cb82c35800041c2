"""Trains the demo model with the reference implementation (torch and transformers), on pictures that it draws itself.

    python tools/train_demo.py --hours 2                 # from nothing; the same line with --resume goes on
    python tools/train_demo.py --export                  # writes mlx_lfm2vl/demo from the last checkpoint

Contract: the model is the reference's own module. All pictures of a batch have one size, so the forward pass here
calls the reference's layers without its loops over pictures; at the start both ways are compared and must agree.
Runs on the CPU, or on a GPU where torch sees one. A batch is a function of its step, so a resumed run continues as if
never stopped. Evaluation and export use an exponential average of the weights.

Limits: the loss is on the assistant's tokens (each answer and its ``<|im_end|>``). The rates printed here count answers
that are right to the last token; `tools/score_demo.py` measures the exported folder with the shipped package.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import demo_files
import demo_tasks
import numpy as np
import reference_shim  # noqa: F401  (before transformers)
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration

ROOT = pathlib.Path(__file__).resolve().parent.parent
PATCH = demo_files.VISION_CONFIG["patch_size"]
IGNORED = -100
# Share of the batches of each task, and how many samples a batch of it holds (rows of alike length cost alike).
MIX = {"chat": 0.68, "count": 0.32}
BATCH = {"chat": 20, "count": 32}
WARM_STEPS, WARM_BATCH = 480, 64  # first the tower alone, taught by dense labels: a quarter of the cost of a picture
EASY_STEPS = 300  # over these steps after that, scenes grow from mostly one object to up to three
CELL = 4  # pixels; the finest dense label says how much of each such square is covered by objects
SCORED = ("describe", "ask", "count")


# --- samples to arrays


@functools.cache
def tokenizer() -> Tokenizer:
    return demo_files.tokenizer()


@functools.lru_cache(maxsize=100_000)
def encode(text: str) -> tuple[int, ...]:
    return tuple(tokenizer().encode(text, add_special_tokens=False).ids)


def encode_sample(sample: demo_tasks.Sample) -> tuple[list[int], list[int]]:
    """Token ids of the whole conversation, and the labels: ids where the assistant speaks, -100 elsewhere."""
    newline = encode("\n")
    ids: list[int] = [demo_files.BOS]
    labels: list[int] = [IGNORED]
    for index, (question, answer) in enumerate(sample.turns):
        head = [demo_files.IM_START, *encode("user"), *newline]
        for picture in sample.images if index == 0 else ():
            tokens = (picture.width // (2 * PATCH)) * (picture.height // (2 * PATCH))
            head += [demo_files.IMAGE_START, *[demo_files.IMAGE] * tokens, demo_files.IMAGE_END]
        head += [*encode(question), demo_files.IM_END, *newline, demo_files.IM_START, *encode("assistant"), *newline]
        said = [*encode(answer), demo_files.IM_END]
        ids += [*head, *said, *newline]
        labels += [IGNORED] * len(head) + said + [IGNORED] * len(newline)
    return ids, labels


def patchify(picture: np.ndarray) -> np.ndarray:
    """(height, width, 3) uint8 -> (patches, 768) uint8, patches row by row, each as (y, x, channel)."""
    rows, cols = picture.shape[0] // PATCH, picture.shape[1] // PATCH
    return picture.reshape(rows, PATCH, cols, PATCH, 3).swapaxes(1, 2).reshape(rows * cols, -1)


def coverage(picture: np.ndarray) -> np.ndarray:
    """How much of each cell of each patch is no background: (height, width, 3) uint8 -> (patches, 16) float32."""
    distance = abs(picture.astype(np.int16) - np.median(picture[::5, ::5], axis=(0, 1)).astype(np.int16)).max(-1)
    height, width = distance.shape
    cells = (distance > 45).reshape(height // CELL, CELL, width // CELL, CELL).mean((1, 3), dtype=np.float32)
    side = PATCH // CELL
    return cells.reshape(height // PATCH, side, width // PATCH, side).swapaxes(1, 2).reshape(-1, side * side)


def patch_labels(things: tuple[demo_tasks.Thing, ...], rows: int, cols: int) -> tuple[np.ndarray, np.ndarray]:
    """What each patch shows: (patches, 3) indices of shape, colour and size, 0 where there is no object, and
    (patches, 2) float32, the way from the patch's middle to the object's in patches.
    """
    y, x = np.mgrid[:rows, :cols] * PATCH + PATCH / 2
    out = np.zeros((rows, cols, 3), np.int64)
    way = np.zeros((rows, cols, 2), np.float32)
    best = np.full((rows, cols), np.inf)
    for o in things:
        distance = np.hypot(x - o.x, y - o.y) - o.radius
        here = (distance < np.minimum(best, 3.0)) | ((abs(x - o.x) <= PATCH / 2) & (abs(y - o.y) <= PATCH / 2))
        best = np.where(here, distance, best)
        out[here] = (
            demo_tasks.SHAPES.index(o.shape) + 1,
            list(demo_tasks.COLOURS).index(o.colour) + 1,
            list(demo_tasks.SIZES).index(o.size) + 1,
        )
        way[here] = np.stack([o.x - x, o.y - y], -1)[here] / PATCH
    return out.reshape(-1, 3), way.reshape(-1, 2)


def collate(samples: list[demo_tasks.Sample]) -> dict[str, torch.Tensor | tuple[int, int]]:
    """Samples with one picture each, all of one size, as a right-padded batch."""
    rows = [encode_sample(s) for s in samples]
    length = max(len(ids) for ids, _ in rows)
    ids = np.full((len(rows), length), demo_files.PAD)
    labels = np.full((len(rows), length), IGNORED)
    for i, (row, said) in enumerate(rows):
        ids[i, : len(row)], labels[i, : len(row)] = row, said
    pictures = [np.asarray(s.images[0]) for s in samples]
    grid = (pictures[0].shape[0] // PATCH, pictures[0].shape[1] // PATCH)
    named, ways = zip(*(patch_labels(s.things[0], *grid) for s in samples), strict=True)
    return {
        "ids": torch.from_numpy(ids),
        "labels": torch.from_numpy(labels),
        "patches": torch.from_numpy(np.stack([patchify(p) for p in pictures])),
        "named": torch.from_numpy(np.stack(named)),
        "ways": torch.from_numpy(np.stack(ways)),
        "covered": torch.from_numpy(np.stack([coverage(p) for p in pictures])),
        "grid": grid,
    }


class Batches(torch.utils.data.IterableDataset):
    """The endless row of training batches from a given step on; batch and step belong together."""

    def __init__(self, step: int, scale: int = 1):
        self.step, self.scale = step, scale

    def __iter__(self):
        step = self.step
        while True:
            rng = np.random.default_rng([7, step])
            task = str(rng.choice(list(MIX), p=list(MIX.values())))
            square = rng.random() < 0.7
            size = demo_tasks.GRIDS[0] if square else demo_tasks.GRIDS[rng.integers(1, len(demo_tasks.GRIDS))]
            warm = step < WARM_STEPS
            level = 1.0 if warm else min(1.0, (step - WARM_STEPS) / EASY_STEPS)
            number = (WARM_BATCH if warm else BATCH[task]) * self.scale
            yield collate([demo_tasks.make(task, "train", step * 1000 + i, size, level) for i in range(number)])
            step += 1


# --- the model


def build() -> Lfm2VlForConditionalGeneration:
    config = demo_files.config()
    model = Lfm2VlForConditionalGeneration(Lfm2VlConfig(**{k: v for k, v in config.items() if k != "dtype"})).float()
    weight = model.model.vision_tower.embeddings.patch_embedding.weight
    with torch.no_grad():
        weight.copy_(torch.from_numpy(first_filters(len(weight))))
    return model


def first_filters(number: int) -> np.ndarray:
    """Low cosine waves of brightness and of two colour differences, (number, 768): what a patch embedding starts from.

    They carry a patch's outline and hue at once, which random filters drown in pixel noise.
    """
    n = np.arange(PATCH)
    waves = np.cos(np.pi * (n[None] + 0.5) * n[:, None] / PATCH) * np.sqrt(2 / PATCH)
    waves[0] /= np.sqrt(2)
    order = sorted(((u, v) for u in n for v in n), key=lambda p: (p[0] + p[1], p))
    opponents = (((1, 1, 1), number // 2), ((1, -1, 0), number // 4), ((0.5, 0.5, -1), number - 3 * number // 4))
    filters = []
    for mix, count in opponents:
        hue = np.array(mix) / np.linalg.norm(mix)
        for u, v in order[:count]:
            loud = 0.25 if u + v else 0.06  # the mean would drown the rest
            filters.append(loud * (waves[u][:, None, None] * waves[v][None, :, None] * hue).reshape(-1))
    return np.stack(filters).astype(np.float32)


class Dense(torch.nn.Module):
    """Linear heads that tell what each patch shows: an object's shape, colour and size, the way to its middle, the
    cells it covers. They teach the tower and are thrown away after training.
    """

    def __init__(self, width: int):
        super().__init__()
        self.sizes = (len(demo_tasks.SHAPES) + 1, len(demo_tasks.COLOURS) + 1, len(demo_tasks.SIZES) + 1)
        self.heads = torch.nn.Linear(width, sum(self.sizes) + 2 + (PATCH // CELL) ** 2)

    def forward(self, features: torch.Tensor, batch: dict) -> tuple[torch.Tensor, float]:
        """The loss, and the share of patches with an object whose shape is named rightly."""
        parts = self.heads(features).flatten(0, 1).split((*self.sizes, 2, (PATCH // CELL) ** 2), dim=-1)
        labels = batch["named"].flatten(0, 1)
        there = labels[:, 0] > 0
        loss = F.binary_cross_entropy_with_logits(parts[4], batch["covered"].flatten(0, 1))
        loss = loss + 0.2 * F.smooth_l1_loss(parts[3][there], batch["ways"].flatten(0, 1)[there])
        for part, label in zip(parts, labels.unbind(-1), strict=False):
            # half for the patches with an object, half for all of them
            loss = loss + 0.5 * F.cross_entropy(part, label) + 0.5 * F.cross_entropy(part[there], label[there])
        right = parts[0][there].argmax(-1) == labels[there, 0]
        return loss, right.float().mean().item()


def see(model: Lfm2VlForConditionalGeneration, batch: dict) -> torch.Tensor:
    """The tower's features, (pictures, patches, width), of pictures that share one size, without loops over them."""
    tower = model.model.vision_tower
    rows, cols = batch["grid"]
    pixels = batch["patches"].float() / 127.5 - 1
    table = tower.embeddings.position_embedding.weight
    side = int(math.sqrt(table.shape[0]))
    table = table.reshape(side, side, -1).permute(2, 0, 1)[None]
    places = F.interpolate(table, size=(rows, cols), mode="bilinear", align_corners=False, antialias=True)
    x = tower.embeddings.patch_embedding(pixels) + places.flatten(2).transpose(1, 2)
    for layer in tower.encoder.layers:
        x = layer(x, None)
    return tower.post_layernorm(x)


def forward(model: Lfm2VlForConditionalGeneration, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """(last hidden states, tower features) of a batch whose pictures share one size."""
    core, (rows, cols) = model.model, batch["grid"]
    features = see(model, batch)
    image = core.multi_modal_projector(features.reshape(len(features), rows, cols, -1)).flatten(1, 2)
    embeds = core.language_model.embed_tokens(batch["ids"])
    embeds = embeds.masked_scatter((batch["ids"] == demo_files.IMAGE)[..., None], image)
    # Padding stands on the right, behind everything that is scored: causal layers need no mask for it.
    return core.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state, features


def answers(model: Lfm2VlForConditionalGeneration, hidden: torch.Tensor, labels: torch.Tensor) -> tuple:
    """Logits and targets at the positions whose next token is scored."""
    scored = labels[:, 1:] != IGNORED
    return model.lm_head(hidden[:, :-1][scored]), labels[:, 1:][scored], scored


def check_against_reference(model: Lfm2VlForConditionalGeneration, device: torch.device) -> None:
    """Raises AssertionError unless this file's forward pass equals the reference's own."""
    for size in ((128, 128), (96, 160)):
        batch = to_device(collate([demo_tasks.make("ask", "test", i, size) for i in range(4)]), device)
        rows, cols = batch["grid"]
        with torch.no_grad():
            mine = model.lm_head(forward(model, batch)[0])
            theirs = model(
                input_ids=batch["ids"],
                pixel_values=batch["patches"].float() / 127.5 - 1,
                spatial_shapes=torch.tensor([[rows, cols]] * 4),
                pixel_attention_mask=torch.ones(4, rows * cols, dtype=torch.int32, device=device),
            ).logits
        worst = float((mine - theirs).abs().max() / theirs.abs().max())
        assert worst < 1e-4, f"the forward pass for training differs from the reference's by {worst:.2e} at {size}"


def to_device(batch: dict, device: torch.device) -> dict:
    return {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


@torch.no_grad()
def held_out(
    model: Lfm2VlForConditionalGeneration, device: torch.device, number: int, split: str = "test"
) -> dict[str, float]:
    """Share of the first answers that greedy decoding would give right to the last token, for each task.

    Greedy decoding repeats an answer exactly if and only if each of its tokens is the likeliest after those before it,
    so one pass over the written answers decides it.
    """
    rates = {}
    for task in SCORED:
        right = 0
        for start in range(0, number, 50):
            samples = [demo_tasks.make(task, split, 10_000_000 + start + i, demo_tasks.GRIDS[0]) for i in range(50)]
            samples = [demo_tasks.Sample(s.task, s.images, s.turns[:1], s.things, s.facts) for s in samples]
            batch = to_device(collate(samples), device)
            logits, targets, scored = answers(model, forward(model, batch)[0], batch["labels"])
            wrong = torch.zeros(scored.shape, dtype=torch.bool, device=device)
            wrong[scored] = logits.argmax(-1) != targets
            right += int((~wrong.any(1)).sum())
        rates[task] = right / (math.ceil(number / 50) * 50)
    return rates


# --- optimisation


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix updates are made orthogonal (K. Jordan, 2024, "Muon"); for weight matrices of layers."""

    def __init__(self, params: list[torch.nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.02):
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[torch.nn.Parameter]] = {}
            for p in (p for p in group["params"] if p.grad is not None):
                alike.setdefault(tuple(p.shape), []).append(p)
            for (rows, cols), params in alike.items():
                updates = []
                for p in params:
                    kept = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    kept.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(kept, group["momentum"]))
                update = orthogonal(torch.stack(updates)) * (0.2 * max(rows, cols) ** 0.5)
                for p, u in zip(params, update, strict=True):
                    p.mul_(1 - group["lr"] * group["decay"]).add_(u, alpha=-group["lr"])


def orthogonal(x: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest orthogonal matrices to a stack of matrices, roughly: a quintic Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


def optimizers(model: torch.nn.Module, dense: torch.nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers; AdamW for embeddings, norms, biases, kernels and the dense heads."""
    inner, outer = [], list(dense.parameters())
    for name, p in model.named_parameters():
        layered = p.ndim == 2 and "embed" not in name and "lm_head" not in name
        (inner if layered else outer).append(p)
    return [Muon(inner, lr), torch.optim.AdamW(outer, lr, betas=(0.9, 0.95), weight_decay=0.0)]


def rate(progress: float, step: int) -> float:
    """Share of the full learning rate: short warm-ups, a plateau, and a fall to nothing over the last half."""
    since = step if step < WARM_STEPS else step - WARM_STEPS
    return min(1.0, (since + 1) / 100) * min(1.0, max(0.0, (1 - progress) / 0.5))


# --- the run


class Threads:
    """Chooses between one CPU thread and all of them by trial, now and then.

    Beside other busy processes two threads that wait for each other at every operation can be slower than one.
    """

    every, trial = 300, 2  # steps between trials; steps of each choice in a trial

    def __init__(self, most: int):
        self.choices = (1, most) if most > 1 else ()
        self.spent: dict[int, float] = {}
        self.steps = 0

    def after(self, seconds: float) -> None:
        """Told after each step how long it took; sets torch's thread count for the next."""
        if not self.choices:
            return
        phase = self.steps % self.every
        self.steps += 1
        if 0 < phase <= 2 * self.trial:
            used = torch.get_num_threads()
            self.spent[used] = self.spent.get(used, 0.0) + seconds
        if phase == 2 * self.trial:
            torch.set_num_threads(min(self.choices, key=lambda n: self.spent.get(n, 0.0)))
            print(
                "seconds a step by threads:", {n: round(s / self.trial, 2) for n, s in self.spent.items()}, flush=True
            )
            self.spent = {}
        elif phase < 2 * self.trial:
            torch.set_num_threads(self.choices[phase % 2])


def save(path: pathlib.Path, state: dict) -> None:
    """Writes a checkpoint so that at any moment a whole one lies there."""
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def export(model: Lfm2VlForConditionalGeneration, folder: pathlib.Path) -> None:
    """Writes the demo folder's files and the weights, in bfloat16 under the hub's names."""
    demo_files.write(folder)
    tensors = {
        name.replace("model.vision_tower.", "model.vision_tower.vision_model."): p.detach()
        .to(torch.bfloat16)
        .contiguous()
        .cpu()
        for name, p in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(tensors, folder / "model.safetensors.new", metadata={"format": "pt"})
    (folder / "model.safetensors.new").chmod(0o644)
    os.replace(folder / "model.safetensors.new", folder / "model.safetensors")
    print(f"{folder}: {sum(t.numel() for t in tensors.values()):,} parameters")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "build" / "demo-training", help="checkpoint folder")
    parser.add_argument("--hours", type=float, default=2.0, help="length of the schedule, all runs together")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: one or all, by trial)")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--scale", type=int, default=1, help="multiplies the batch (for a GPU)")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw pictures")
    parser.add_argument("--every", type=float, default=4.0, help="minutes between checkpoints")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--export", action="store_true", help="write the demo folder from the last checkpoint and stop")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "mlx_lfm2vl" / "demo")
    args = parser.parse_args()

    args.work.mkdir(parents=True, exist_ok=True)
    path = args.work / "checkpoint.pt"
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, dense = build().to(device), Dense(demo_files.VISION_CONFIG["hidden_size"]).to(device)
    if args.export:
        model.load_state_dict(torch.load(path, map_location=device)["average"])
        export(model, args.out)
        return
    check_against_reference(model.eval(), device)
    optims = optimizers(model, dense, args.lr)
    average = {k: v.clone() for k, v in model.state_dict().items()}
    step, spent = 0, 0.0
    if args.resume:
        state = torch.load(path, map_location=device)
        model.load_state_dict(state["model"])
        dense.load_state_dict(state["dense"])
        for o, s in zip(optims, state["optims"], strict=True):
            o.load_state_dict(s)
        average, step, spent = state["average"], state["step"], state["spent"]
    total = sum(p.numel() for p in model.parameters())
    print(f"{total:,} parameters on {device}, from step {step}, {spent / 60:.0f} min", flush=True)

    threads = Threads(0 if args.threads or device.type == "cuda" else torch.get_num_threads())
    loader = iter(torch.utils.data.DataLoader(Batches(step, args.scale), batch_size=None, num_workers=args.workers))
    judge = build().to(device).eval()
    last = time.monotonic()
    saved = evaluated = spent
    losses: list[tuple[float, float, float]] = []
    while spent < args.hours * 3600:
        batch = to_device(next(loader), device)
        progress = spent / (args.hours * 3600)
        for o in optims:
            for group in o.param_groups:
                group["lr"] = args.lr * rate(progress, step)
        if step < WARM_STEPS:
            features, loss, share = see(model, batch), torch.zeros((), device=device), 1.0
        else:
            hidden, features = forward(model, batch)
            logits, targets, _ = answers(model, hidden, batch["labels"])
            loss, share = F.cross_entropy(logits, targets), max(0.05, 0.3 * (1 - 2 * progress))
        seen, named = dense(features, batch)
        (loss + share * seen).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in optims:
            o.step()
            o.zero_grad(set_to_none=True)
        with torch.no_grad():
            keep = min(0.998, step / (step + 20))
            for k, v in model.state_dict().items():
                average[k].lerp_(v, 1 - keep)
        losses.append((loss.item(), seen.item(), named))
        step += 1
        now = time.monotonic()
        threads.after(now - last)
        spent, last = spent + now - last, now
        if step % 50 == 0:
            words, patches, shapes = np.mean(losses, axis=0)
            clock = f"step {step} {spent / 60:.1f} min"
            print(
                clock,
                f"loss {words:.4f} dense {patches:.4f} shapes {shapes:.3f} lr {optims[0].param_groups[0]['lr']:.2e}",
                flush=True,
            )
            losses.clear()
        finished = spent >= args.hours * 3600
        if spent - saved > args.every * 60 or finished:
            saved = spent
            states = [o.state_dict() for o in optims]
            save(
                path,
                {
                    "model": model.state_dict(),
                    "dense": dense.state_dict(),
                    "optims": states,
                    "average": average,
                    "step": step,
                    "spent": spent,
                },
            )
        if (step > WARM_STEPS and spent - evaluated > 3 * args.every * 60) or finished:
            evaluated = spent
            judge.load_state_dict(average)
            rates = held_out(judge, device, 1000 if finished else 200)
            print("held out, wholly right:", " ".join(f"{k} {v:.3f}" for k, v in rates.items()), flush=True)
            if all(v >= 0.995 for v in rates.values()):
                print("the held-out rates stand; stopping", flush=True)
                break


if __name__ == "__main__":
    main()
