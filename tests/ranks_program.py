"""A program of ranks that share a model: prints its tokens and what this rank holds, as JSON."""

import json
import sys

import mlx.core as mx

from mlx_lfm2vl import GenerationOptions, GenerationRequest, generate_batch, load
from mlx_lfm2vl.distributed.group import launched_group

folder, *pictures = sys.argv[1:]
group = launched_group()
mx.reset_peak_memory()
model, processor = load(folder, backend="mlx", group=group)
peak = mx.get_peak_memory()
logits = model(mx.array([[5, 9, 300, 7]])).logits
options = [GenerationOptions(max_tokens=12, temperature=heat, seed=3) for heat in (0.0, 0.8)]
requests = [GenerationRequest("What is this?", pictures or None, options=each) for each in options]
answers = list(generate_batch(model, processor, requests))
print(
    json.dumps(
        {
            "tokens": [list(answer.tokens) for answer in answers],
            "errors": [str(answer.error) for answer in answers if answer.error],
            "peak": peak,
            "logits": logits[0, -1].tolist(),
        }
    )
)
