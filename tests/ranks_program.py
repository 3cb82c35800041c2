"""A program of ranks that share models: prints their tokens and what this rank holds, as JSON.

Its words are a list of [model, adapter, bytes] as JSON, and pictures. `bytes`: where given, so much memory is left to
the last rank.
"""

import json
import os
import resource
import sys
from pathlib import Path

import mlx.core as mx

from mlx_lfm2vl import GenerationOptions, GenerationRequest, generate_batch, load
from mlx_lfm2vl.backends.memory import RESERVED, RESERVED_A_CORE
from mlx_lfm2vl.distributed.group import launched_group

models, *pictures = sys.argv[1:]
group = launched_group()
made = []
for name, adapter, left in json.loads(models):
    mx.reset_peak_memory()
    model, processor = load(name, adapter=adapter, backend="mlx", group=group)
    peak = mx.get_peak_memory()
    logits = model(mx.array([[5, 9, 300, 7]])).logits
    prompts = ["What is this?"] * 2
    if left is not None:
        prompts.insert(1, "What is that? " * 400)
        if group is not None and group.rank() == group.size() - 1:
            mx.clear_cache()
            used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
            limit = used + left + RESERVED + RESERVED_A_CORE * (os.cpu_count() or 1)
            resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
    options = [GenerationOptions(max_tokens=12, temperature=heat, seed=3) for heat in (0.0, 0.8, 0.0)]
    requests = [
        GenerationRequest(prompt, pictures or None, options=each)
        for prompt, each in zip(prompts, options, strict=False)
    ]
    answers = list(generate_batch(model, processor, requests))
    made.append(
        {
            "tokens": [list(answer.tokens) for answer in answers],
            "errors": [str(answer.error) for answer in answers if answer.error],
            "peak": peak,
            "logits": logits[0, -1].tolist(),
        }
    )
print(json.dumps(made))
