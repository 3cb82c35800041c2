"""Freezes adapters of PEFT over a small checkpoint, and the numbers of the adapted reference.

    python -m tools.golden.adapters              writes tests/adapters/ anew
    python -m tools.golden.adapters --check FOLDER   compares the logits of an adapter written here with PEFT's

It needs the extra `reference` and peft 0.21. tests/adapters/NAME/ then holds the two files that PEFT saves, and
expected.npz: `logits` (rows, vocab) at `token_rows` (rows, 2) of the case gen25-batch-right, its `loss` against that
case's labels, and `gradient.NAME` of each trained tensor, all in float32.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from .cases import CASES
from .pictures import draw
from .stages import load

TESTS = Path(__file__).resolve().parents[2] / "tests"
CASE = "gen25-batch-right"
CONFIGS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "w1", "in_proj"]},
    "dora": {
        **{"r": 3, "lora_alpha": 6, "use_dora": True, "use_rslora": True, "modules_to_save": ["linear_2"]},
        "target_modules": r".*(language_model.*(k_proj|w2|conv\.out_proj)|vision_tower.*(fc1|k_proj))",
        **{"rank_pattern": {"w2": 2}, "alpha_pattern": {r"layers\.0\.feed_forward\.w2": 3}},
    },
}


def inputs_of_case(processor: Any) -> dict[str, Any]:
    """The tensors of the case, labels included."""
    (case,) = (case for case in CASES if case.id == CASE)
    pictures = [[draw(name) for name in names] for names in case.picture_names]
    prompts = [processor.apply_chat_template(turns, add_generation_prompt=True) for turns in case.conversations]
    inputs = processor(images=pictures, text=prompts, return_tensors="pt", padding=True, padding_side="right")
    with np.load(TESTS / "golden" / "cases" / f"{CASE}.npz") as stored:
        assert np.array_equal(stored["input_ids"], inputs["input_ids"].numpy())
        return {**inputs, "labels": torch.from_numpy(stored["labels"])}


def freeze(name: str, folder: Path) -> None:
    """Writes the adapter of a configuration, drawn at random, and what PEFT computes with it."""
    torch.manual_seed(sorted(CONFIGS).index(name))
    model, processor = load(str(TESTS / "golden" / "gen25"))
    adapted = get_peft_model(model, LoraConfig(**CONFIGS[name]))
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                magnitude = "magnitude" in key
                noise = torch.rand_like(parameter) * 0.4 + 0.8 if magnitude else torch.randn_like(parameter) * 0.05
                parameter.copy_(parameter * noise if magnitude else parameter + noise)
    adapted.eval()
    output = adapted(**inputs_of_case(processor))
    output.loss.backward()
    adapted.peft_config["default"].base_model_name_or_path = "gen25"
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink()
    mask = inputs_of_case(processor)["attention_mask"].numpy()
    rows = np.argwhere(mask)[:: max(1, mask.sum() // 24)]
    arrays = {"token_rows": rows, "logits": output.logits.detach().numpy()[tuple(rows.T)]}
    arrays["loss"] = output.loss.detach().numpy()
    for key, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            arrays[f"gradient.{key.replace('.default', '')}"] = parameter.grad.numpy()
    np.savez_compressed(folder / "expected.npz", **arrays)


def check(folder: Path, base: str) -> float:
    """The largest difference of logits between PEFT with the adapter of `folder` and `logits.npy` (B, L, vocab) beside
    it, in parts of the largest logit."""
    model, processor = load(base)
    adapted = PeftModel.from_pretrained(model, str(folder)).eval()
    inputs = inputs_of_case(processor)
    inputs.pop("labels")
    with torch.no_grad():
        logits = adapted(**inputs).logits.numpy()
    real = inputs["attention_mask"].numpy().astype(bool)
    return float(np.abs(logits - np.load(folder / "logits.npy"))[real].max() / np.abs(logits).max())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="of an adapter with logits.npy beside it")
    parser.add_argument("--base", default=str(TESTS / "golden" / "gen25"), metavar="FOLDER", help="its model")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.check is not None:
        difference = check(args.check, args.base)
        print(f"{difference:.2g}")
        return 0 if difference < 1e-4 else 1
    for name in CONFIGS:
        freeze(name, TESTS / "adapters" / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
