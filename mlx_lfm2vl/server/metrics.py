"""Counters of the server in Prometheus' text format."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator

from .log import RequestRecord
from .models import Model, Models

PREFIX = "mlx_lfm2vl_"
Sample = tuple[dict[str, str], float]
SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """Counts of what has been answered since the start."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, str]] = Counter()  # by path and status
        self._tokens: Counter[tuple[str, str]] = Counter()  # by model and kind
        self._buckets: Counter[float] = Counter()
        self._seconds, self._count, self._running = 0.0, 0, 0

    @contextlib.contextmanager
    def in_flight(self) -> Iterator[None]:
        """Counts a request while the block runs."""
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    def add(self, record: RequestRecord) -> None:
        """Counts a request that has ended."""
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
        lines: list[str] = []

        def add(name: str, kind: str, help: str, samples: Iterable[Sample], suffixed: str = "") -> None:
            if not suffixed:
                lines.extend((f"# HELP {PREFIX}{name} {help}", f"# TYPE {PREFIX}{name} {kind}"))
            for labels, value in samples:
                inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
                lines.append(
                    f"{PREFIX}{name}{suffixed}{{{inner}}} {_number(value)}"
                    if inner
                    else f"{PREFIX}{name}{suffixed} {_number(value)}"
                )

        add(
            "requests_total",
            "counter",
            "Requests that have ended, by path and status; streams that were cut by that of their error.",
            [({"path": path, "status": status}, count) for (path, status), count in sorted(self._requests.items())],
        )
        add("requests_in_flight", "gauge", "Requests that have not ended.", [({}, self._running)])
        for kind, what in (
            ("prompt", "of prompts"),
            ("cached", "of prompts that were known from before"),
            ("image", "of pictures"),
            ("generated", "of answers"),
        ):
            add(
                f"{kind}_tokens_total",
                "counter",
                f"Tokens {what}.",
                [({"model": model}, count) for (model, of), count in sorted(self._tokens.items()) if of == kind],
            )
        add("request_seconds", "histogram", "Seconds from a request to the end of an answer that is whole.", [])
        bounds = [({"le": f"{bound:g}"}, float(self._buckets[bound])) for bound in SECONDS]
        add("request_seconds", "", "", [*bounds, ({"le": "+Inf"}, self._count)], "_bucket")
        add("request_seconds", "", "", [({}, self._seconds)], "_sum")
        add("request_seconds", "", "", [({}, self._count)], "_count")
        listed = list(models)
        engines = [(model, model.engine) for model in listed if model.engine is not None]
        add(
            "model_loaded",
            "gauge",
            "Whether a model is loaded.",
            [(_label(model), float(model.state == "loaded")) for model in listed],
        )
        add(
            "queue_length",
            "gauge",
            "Requests that wait for their turn.",
            [(_label(model), engine.queue_length) for model, engine in engines],
        )
        add(
            "batch_size",
            "gauge",
            "Requests that are answered together.",
            [(_label(model), engine.batch_length) for model, engine in engines],
        )
        for _, engine in engines[:1]:
            memory = engine.memory()
            add(
                "memory_bytes",
                "gauge",
                "Bytes that MLX holds in the whole process.",
                [
                    ({"kind": "active"}, memory.active),
                    ({"kind": "cache"}, memory.cache),
                    ({"kind": "peak"}, memory.peak),
                ],
            )
        add(
            "cache_bytes",
            "gauge",
            "Bytes of encoded pictures and of prompts that are kept.",
            [
                (_label(model) | {"kind": kind}, size)
                for model, engine in engines
                for kind, size in (("vision", engine.memory().vision_cache), ("prompt", engine.memory().prompt_cache))
            ],
        )
        return "\n".join([*lines, ""])


def _label(model: Model) -> dict[str, str]:
    return {"model": model.id}


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
