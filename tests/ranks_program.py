"""A program of ranks that share models: prints their tokens and what this rank holds, as JSON.

Its words are a list of [model, adapter, bytes] as JSON, and pictures. `bytes`: where given, so much memory is left to
the last rank, and a long answer is asked for between the others.
"""

import json
import os
import resource
import sys
from dataclasses import replace
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
    options = [GenerationOptions(max_tokens=12, temperature=heat, seed=3) for heat in (0.0, 0.8)]
    requests = [GenerationRequest("What is this?", pictures or None, options=each) for each in options]
    answers = list(generate_batch(model, processor, requests))
    if left is not None:  # and all threads have begun
        requests.insert(1, replace(requests[0], options=GenerationOptions(max_tokens=400_000)))
        if group is not None and group.rank() == group.size() - 1:
            mx.clear_cache()
            used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
            limit = used + left + RESERVED + RESERVED_A_CORE * (os.cpu_count() or 1)
            resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
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
