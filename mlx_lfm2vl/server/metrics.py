"""Counters of the server in Prometheus' text format."""

from __future__ import annotations

from collections import Counter

from .log import RequestRecord
from .models import Models

PREFIX = "mlx_lfm2vl_"
SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
METRICS = {  # kinds and descriptions, in the order in which they are told
    "requests_total": (
        "counter",
        "Requests that have ended, by path and status; streams that were cut by that of their error.",
    ),
    "requests_in_flight": ("gauge", "Requests that have not ended."),
    "prompt_tokens_total": ("counter", "Tokens of prompts."),
    "cached_tokens_total": ("counter", "Tokens of prompts that were known from before."),
    "image_tokens_total": ("counter", "Tokens of pictures."),
    "generated_tokens_total": ("counter", "Tokens of answers."),
    "request_seconds": ("histogram", "Seconds from a request to the end of an answer that is whole."),
    "model_loaded": ("gauge", "Whether a model is loaded."),
    "queue_length": ("gauge", "Requests that wait for their turn."),
    "batch_size": ("gauge", "Requests that are answered together."),
    "memory_bytes": ("gauge", "Bytes that MLX holds in the whole process."),
    "cache_bytes": ("gauge", "Bytes of encoded pictures and of prompts that are kept."),
}


class Metrics:
    """Counts of what has been answered since the start."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, str]] = Counter()  # by path and status
        self._tokens: Counter[tuple[str, str]] = Counter()  # by model and kind
        self._buckets: Counter[float] = Counter()
        self._seconds, self._count, self._running = 0.0, 0, 0

    def begin(self) -> None:
        """Counts a request that has not ended, until it is added."""
        self._running += 1

    def add(self, record: RequestRecord) -> None:
        """Counts a request that has ended."""
        self._running -= 1
        status = record.cut or record.status
        self._requests[record.route, str(status)] += 1
        if not record.answers:
            return
        if status == 200:
            self._count, self._seconds = self._count + 1, self._seconds + record.seconds
            self._buckets.update(bound for bound in SECONDS if record.seconds <= bound)
        first = record.answers[0]
        self._tokens[record.model, "prompt"] += first.prompt_tokens
        self._tokens[record.model, "cached"] += first.cached_tokens
        self._tokens[record.model, "image"] += first.image_tokens
        self._tokens[record.model, "generated"] += sum(each.generated_tokens for each in record.answers)

    def text(self, models: Models) -> str:
        """All samples, and the state of the models."""
        engines = {model.id: model.engine for model in models if model.engine is not None}
        memories = {id: engine.memory() for id, engine in engines.items()}
        samples: dict[str, dict[str, float]] = {name: {} for name in METRICS}  # by what is behind the metric's name
        for (path, status), count in sorted(self._requests.items()):
            samples["requests_total"][_labels(path=path, status=status)] = count
        samples["requests_in_flight"][""] = self._running
        for (id, kind), count in sorted(self._tokens.items()):
            samples[f"{kind}_tokens_total"][_labels(model=id)] = count
        buckets = {f"_bucket{_labels(le=f'{bound:g}')}": self._buckets[bound] for bound in SECONDS}
        ends = {f"_bucket{_labels(le='+Inf')}": self._count, "_sum": self._seconds, "_count": self._count}
        samples["request_seconds"] = {**buckets, **ends}
        samples["model_loaded"] = {_labels(model=model.id): model.state == "loaded" for model in models}
        samples["queue_length"] = {_labels(model=id): engine.queue_length for id, engine in engines.items()}
        samples["batch_size"] = {_labels(model=id): engine.batch_length for id, engine in engines.items()}
        for id, memory in memories.items():
            for kind in ("vision", "prompt"):
                samples["cache_bytes"][_labels(model=id, kind=kind)] = getattr(memory, f"{kind}_cache")
            for kind in ("active", "cache", "peak"):
                samples["memory_bytes"].setdefault(_labels(kind=kind), getattr(memory, kind))
        if not memories:
            del samples["memory_bytes"]
        lines = []
        for name, values in samples.items():
            kind, help = METRICS[name]
            lines += [f"# HELP {PREFIX}{name} {help}", f"# TYPE {PREFIX}{name} {kind}"]
            lines += [f"{PREFIX}{name}{rest} {_number(value)}" for rest, value in values.items()]
        return "\n".join([*lines, ""])


def _labels(**labels: str) -> str:
    return "{" + ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items()) + "}"


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
