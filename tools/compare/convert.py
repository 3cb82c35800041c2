"""Converts one model with this package and with mlx-vlm, each in a process of its own: seconds, memory, bytes.

    python -m tools.compare.convert                     # random weights in the shape of LFM2.5-VL-450M
    python -m tools.compare.convert --model FOLDER --q-bits 8

Needs mlx-vlm. The programs run in turn, `--runs` times, and each one's run of least processor time counts; memory is
the highest resident size. Reading the source once before warms the disk's cache for both. Measuring the error is left
out: mlx-vlm has nothing like it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "gen25"
TEXT_450M = {
    **{"model_type": "lfm2", "hidden_size": 1024, "num_hidden_layers": 16, "num_attention_heads": 16},
    **{"num_key_value_heads": 8, "vocab_size": 65536, "intermediate_size": 6656, "block_ff_dim": 6656},
    **{"block_auto_adjust_ff_dim": True, "block_multiple_of": 256, "block_ffn_dim_multiplier": 1.0, "block_dim": 1024},
    **{"conv_L_cache": 3, "conv_bias": False, "norm_eps": 1e-5, "eos_token_id": 7, "max_position_embeddings": 128000},
    "layer_types": ["full_attention" if n in (2, 5, 8, 10, 12, 14) else "conv" for n in range(16)],
    "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
}
VISION_450M = {
    **{"model_type": "siglip2_vision_model", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    **{"intermediate_size": 3072, "num_patches": 256, "patch_size": 16, "vision_use_head": False},
}
CONFIG_450M = {
    **{"model_type": "lfm2_vl", "architectures": ["Lfm2VlForConditionalGeneration"], "dtype": "bfloat16"},
    **{"projector_hidden_size": 2048, "projector_use_layernorm": False, "image_token_id": 396, "downsample_factor": 2},
    **{"text_config": TEXT_450M, "vision_config": VISION_450M},
}
OURS = """
from mlx_lfm2vl import convert
convert({source!r}, {target!r}, q_bits={bits}, verify=False)
"""
THEIRS = """
from mlx_vlm.convert import convert
convert({source!r}, {target!r}, quantize=True, q_bits={bits}, trust_remote_code=False)
"""


def make_450m(folder: Path) -> None:
    """A bfloat16 checkpoint in the makers' layout, with random weights and the tokenizer of the test checkpoints."""
    import mlx.core as mx

    from mlx_lfm2vl.config import Lfm2VlConfig
    from mlx_lfm2vl.models.lfm2_vl import Lfm2VlForConditionalGeneration
    from mlx_lfm2vl.weights.names import from_module, is_conv_kernel, parameters
    from mlx_lfm2vl.weights.save import write_tensors

    shutil.copytree(GOLDEN, folder, ignore=shutil.ignore_patterns("config.json", "*.safetensors"))
    (folder / "config.json").write_text(json.dumps(CONFIG_450M))
    model = Lfm2VlForConditionalGeneration(Lfm2VlConfig.from_dict(CONFIG_450M))
    tensors = {
        from_module(name, "hub"): (array.transpose(0, 2, 1) if is_conv_kernel(name) else array).astype(mx.bfloat16)
        for name, array in parameters(model).items()
    }
    write_tensors(tensors, folder, file_format="pt")
    (folder / "model.safetensors.index.json").unlink()


@dataclass(frozen=True, order=True)
class Run:
    """Of a process: processor time and time on the clock in seconds, highest resident bytes."""

    processor: float
    clock: float
    memory: int


def measured(program: str) -> Run:
    """A Python program in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen([sys.executable, "-c", program], stdout=output, stderr=output, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        clock = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if status:
            output.seek(0)
            raise SystemExit(output.read().decode(errors="replace"))
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(usage.ru_utime + usage.ru_stime, clock, usage.ru_maxrss * unit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder to convert (default: random weights in the shape of LFM2.5-VL-450M)")
    parser.add_argument("--make", metavar="FOLDER", help="only make the random model")
    parser.add_argument("--q-bits", type=int, default=4)
    parser.add_argument("--runs", type=int, default=2)
    args = parser.parse_args()
    if args.make:
        return make_450m(Path(args.make))
    # This process stays small: on Linux the highest resident size of a child begins at its parent's.
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(args.model).resolve() if args.model else Path(scratch) / "source"
        if not args.model:
            subprocess.run([sys.executable, "-m", "tools.compare.convert", "--make", str(source)], cwd=ROOT, check=True)
        for file in source.glob("*.safetensors"):
            with file.open("rb") as stream:
                while stream.read(2**20):
                    pass
        best: dict[str, Run] = {}
        for _ in range(args.runs):
            for name, program in (("mlx-lfm2vl", OURS), ("mlx-vlm", THEIRS)):
                target = Path(scratch) / name
                shutil.rmtree(target, ignore_errors=True)
                run = measured(program.format(source=str(source), target=str(target), bits=args.q_bits))
                best[name] = min(best.get(name, run), run)
        print(f"{'':12} {'processor':>11} {'clock':>8} {'memory':>9} {'weights':>10}")
        for name, run in best.items():
            size = sum(file.stat().st_size for file in (Path(scratch) / name).glob("*.safetensors"))
            print(
                f"{name:12} {run.processor:9.1f} s {run.clock:6.1f} s {run.memory / 1e6:6.0f} MB {size / 1e6:7.1f} MB"
            )


if __name__ == "__main__":
    main()
