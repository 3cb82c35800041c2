"""Trains the demo model with the reference implementation (torch and transformers), on pictures that it draws itself.

    python -m tools.demo.train                           # from nothing to a demo folder; with --resume it goes on
    python -m tools.demo.train --hours 2 --start DIR     # from the weights of a demo folder, e.g. mlx_lfm2vl/demo
    python -m tools.demo.train --export                  # only writes the folder, from the last checkpoint

When the held-out rates stand, the learning rate falls to nothing; then the folder is written (``--out``).

Contract: the model is the reference's own module. All pictures of a batch have one size, so the forward pass here
calls the reference's layers without its loops over pictures; at the start both ways are compared and must agree.
Runs on the CPU, or on a GPU where torch sees one. A batch is a function of its step, so a resumed run continues as if
never stopped. Evaluation and export use an exponential average of the weights.

Limits: the loss is on the assistant's tokens (each answer and its ``<|im_end|>``). The rates printed here count answers
that are right to the last token; `mlx-lfm2vl evaluate` measures the exported folder on the rows of
`tools/demo/rows.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import pathlib
import time

import numpy as np
import torch

from . import files, tasks, tasks_more
from .batches import EASY_STEPS, WARM_STEPS, WEIGHT, Batches, collate, to_device
from .model import Dense, answer_loss, answers, build, check_against_reference, export, forward, load_folder, see
from .optimizers import optimizers
from .schedule import Schedule

ROOT = pathlib.Path(__file__).resolve().parents[2]
WIDTH, TEXT_WIDTH = files.VISION_CONFIG["hidden_size"], files.TEXT_CONFIG["hidden_size"]
SCORED = ("describe", "ask", "count", *tasks_more.FURTHER)


@torch.no_grad()
def held_out(model: torch.nn.Module, device: torch.device, number: int, split: str = "validate") -> dict[str, float]:
    """Share of the first answers, about pictures that training never drew, that greedy decoding would give right to
    the last token, for each task.

    Greedy decoding repeats an answer exactly if and only if each of its tokens is the likeliest after those before it,
    so one pass over the written answers decides it.
    """
    rates = {}
    for task in SCORED:
        right = 0
        size = tasks_more.TILED[0] if task == "tiled" else tasks.GRIDS[0]
        for start in range(0, number, 50):
            samples = [tasks.make(task, split, start + i, size) for i in range(50)]
            samples = [dataclasses.replace(s, turns=s.turns[:1], apart=False) for s in samples]
            batch = to_device(collate(samples), device)
            logits, targets, scored = answers(model, forward(model, batch)[0], batch["labels"])
            wrong = torch.zeros(scored.shape, dtype=torch.bool, device=device)
            wrong[scored] = logits.argmax(-1) != targets
            right += int((~wrong.any(1)).sum())
        rates[task] = right / (math.ceil(number / 50) * 50)
    return rates


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "build" / "demo-training", help="checkpoint folder")
    parser.add_argument("--hours", type=float, default=24.0, help="the longest it may take, all runs together")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: one or all, by trial)")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--scale", type=int, default=1, help="multiplies the batch (for a GPU)")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw pictures")
    parser.add_argument("--every", type=float, default=4.0, help="minutes between checkpoints")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--start", type=pathlib.Path, help="begin with the weights of this folder")
    parser.add_argument("--export", action="store_true", help="write the demo folder from the last checkpoint and stop")
    parser.add_argument("--out", type=pathlib.Path, help="the folder to write (default: demo in the checkpoint folder)")
    args = parser.parse_args()

    args.work.mkdir(parents=True, exist_ok=True)
    path, out = args.work / "checkpoint.pt", args.out or args.work / "demo"
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, dense = build().to(device), Dense(WIDTH, TEXT_WIDTH).to(device)
    if args.export:
        model.load_state_dict(torch.load(path, map_location=device)["average"])
        export(model, out)
        return
    check_against_reference(model.eval(), device)
    optims = optimizers(model, dense, args.lr)
    schedule, step, spent = Schedule(args.hours), 0, 0.0
    if args.start:  # the model knows its tasks already: neither the warm phase nor the easy one
        load_folder(model, args.start)
        step = WARM_STEPS + EASY_STEPS
    begun = step
    average = {k: v.clone() for k, v in model.state_dict().items()}
    if args.resume:
        state = torch.load(path, map_location=device)
        model.load_state_dict(state["model"])
        dense.load_state_dict(state["dense"])
        for o, s in zip(optims, state["optims"], strict=True):
            o.load_state_dict(s)
        average, step, spent, begun = state["average"], state["step"], state["spent"], state["begun"]
        schedule = Schedule(args.hours, **state["schedule"])
    total = sum(p.numel() for p in model.parameters())
    print(f"{total:,} parameters on {device}, from step {step}, {spent / 60:.0f} min", flush=True)

    threads = Threads(0 if args.threads or device.type == "cuda" else torch.get_num_threads())
    batches = Batches(step, args.scale)
    loader = iter(
        torch.utils.data.DataLoader(batches, batch_size=None, num_workers=args.workers, collate_fn=lambda batch: batch)
    )
    judge = build().to(device).eval()

    def keep_state() -> None:
        save(
            path,
            {
                "model": model.state_dict(),
                "dense": dense.state_dict(),
                "optims": [o.state_dict() for o in optims],
                "average": average,
                "step": step,
                "spent": spent,
                "begun": begun,
                "schedule": schedule.state(),
            },
        )

    last = time.monotonic()
    saved = evaluated = spent
    losses: dict[str, list[float]] = {}
    while not schedule.over(spent):
        batch = to_device(next(loader), device)
        share = schedule.share(spent, step - (WARM_STEPS if begun < WARM_STEPS <= step else begun))
        for o in optims:
            for group in o.param_groups:
                group["lr"] = args.lr * share * group.get("share", 1.0)
        if step < WARM_STEPS:
            features = {grid: see(model, patches, grid) for grid, patches in batch["patches"].items()}
            loss, dense_share = torch.zeros((), device=device), 1.0
        else:
            hidden, features, images = forward(model, batch)
            logits, targets, _ = answers(model, hidden, batch["labels"])
            loss, dense_share = answer_loss(logits, targets), 0.5
        seen = torch.zeros((), device=device)
        if "named" in batch:  # no picture is cut: one grid
            seen = dense(*features.values(), batch)
        if batch["task"] == "compare":
            seen = seen + dense.which(images, batch)
        (WEIGHT.get(batch["task"], 1.0) * loss + dense_share * seen).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in optims:
            o.step()
            o.zero_grad(set_to_none=True)
        with torch.no_grad():
            keep = min(0.998, step / (step + 20))
            for k, v in model.state_dict().items():
                average[k].lerp_(v, 1 - keep)
        losses.setdefault("dense", []).append(seen.item())
        losses.setdefault(batch["task"], []).append(loss.item())
        step += 1
        now = time.monotonic()
        threads.after(now - last)
        spent, last = spent + now - last, now
        if step % 50 == 0:
            told = " ".join(f"{task} {np.mean(several):.4f}" for task, several in sorted(losses.items()))
            print(f"step {step} {spent / 60:.1f} min lr {optims[0].param_groups[0]['lr']:.2e} loss: {told}", flush=True)
            losses.clear()
        finished = schedule.over(spent)
        if spent - saved > args.every * 60 or finished:
            saved = spent
            keep_state()
        if (step > WARM_STEPS and spent - evaluated > 3 * args.every * 60) or finished:
            evaluated = spent
            judge.load_state_dict(average)
            rates = held_out(judge, device, 1000 if finished else 200)
            print("held out, wholly right:", " ".join(f"{k} {v:.3f}" for k, v in rates.items()), flush=True)
            if step > WARM_STEPS + EASY_STEPS and schedule.saw(rates, spent):
                print("the held-out rates stand; from here the learning rate falls", flush=True)
                keep_state()
    model.load_state_dict(average)
    export(model, out)
    print(
        f"measure it with: python -m tools.demo.rows rows; mlx-lfm2vl evaluate {out} --task rows/rows.jsonl", flush=True
    )


if __name__ == "__main__":
    main()
