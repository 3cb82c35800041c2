"""Models in every number format, by MLX's own functions: floating-point numbers of 32 and 16 bits, weights of 8, 4 and
3 bits, and the fp4 and fp8 modes.

The measure is the same model with dense float32 weights of the same values. What that is off from a computation in
float64 is float32's own rounding. In 16 bits the same numbers are rounded in the same places, more coarsely by the
ratio of the epsilons (2^16 for bfloat16, 2^13 for float16), and sums within a kernel are float32's. So an error is at
most that ratio times float32's own; a fifth to a third of it was seen.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import GOLDEN, GoldenCase, picture

from mlx_lfm2vl import Chat, GenerationOptions, GenerationResponse, load
from mlx_lfm2vl.conversion.convert import convert
from mlx_lfm2vl.generation.options import number_type
from mlx_lfm2vl.models.cache import Cache
from mlx_lfm2vl.weights.load import load_model
from mlx_lfm2vl.weights.names import parameters

FLOAT32 = 2e-5  # of the largest logit
EPSILONS = {mx.float32: 2.0**-23, mx.float16: 2.0**-10, mx.bfloat16: 2.0**-7}
DENSE = "dense"
QUANTISED: dict[str, dict[str, Any]] = {
    "8 bits": {"q_bits": 8, "q_group_size": 32},
    "4 bits": {"q_bits": 4, "q_group_size": 32},
    "3 bits": {"q_bits": 3, "q_group_size": 32},
    "mxfp4": {"q_mode": "mxfp4"},
    "mxfp8": {"q_mode": "mxfp8"},
    "nvfp4": {"q_mode": "nvfp4"},
}
BOTH, ALL = ("float32", "bfloat16"), ("float32", "bfloat16", "float16")
FORMATS = [
    *(("gen2", DENSE, dtype) for dtype in ALL),
    *(("gen2", kind, dtype) for kind in QUANTISED for dtype in (ALL if kind in ("4 bits", "mxfp4") else BOTH)),
    *(("gen25", DENSE, dtype) for dtype in BOTH),
    *(("gen25", kind, "bfloat16") for kind in ("8 bits", "3 bits", "nvfp4")),
]
PICTURES = {  # one view, tiles
    "gen2": ["gen2-landscape", "gen2-tiled"],
    "gen25": ["gen25-landscape", "gen25-tile-size"],
}
BATCHES = {"gen2": "gen2-batch-text", "gen25": "gen25-batch-left"}  # a row without a picture, a row with several
STEPS = [600, 601, 602]  # tokens that follow a prompt one by one


# Where numbers are added


@pytest.fixture(scope="module", autouse=True)
def sums_in_float32() -> Iterator[None]:
    """On a CPU, too, as in Metal's kernels; MLX's CPU versions of these functions add in 16 bits."""
    with pytest.MonkeyPatch.context() as patch:
        if mx.default_device() == mx.Device(mx.cpu):
            for home, name in (
                (mx.fast, "scaled_dot_product_attention"),
                (mx.fast, "layer_norm"),
                (mx, "quantized_matmul"),
            ):
                patch.setattr(home, name, lifted(getattr(home, name)))
        yield


def lifted(function: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """The function in float32, its result in the type of its first argument."""

    def wide(value: Any) -> Any:
        half = isinstance(value, mx.array) and value.dtype in (mx.bfloat16, mx.float16)
        return value.astype(mx.float32) if half else value

    return lambda x, *args, **named: function(
        wide(x), *map(wide, args), **{name: wide(value) for name, value in named.items()}
    ).astype(x.dtype)


# The models


def set_up(checkpoint: str, kind: str, folder: Path) -> Path:
    """A checkpoint in a format: language model, tower and projector, where groups divide their rows. Its answers end
    only where tokens do."""
    if kind == DENSE:
        shutil.copytree(GOLDEN / checkpoint, folder)
    else:
        convert(GOLDEN / checkpoint, folder, q_vision=True, verify=False, **QUANTISED[kind])
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": 16_000_000}))
    return folder


def dense_twin(model: Any, folder: Path) -> Any:
    """The model with dense float32 weights of the same values. `folder`: of a dense model of the same shapes."""
    values = {}
    for path, module in model.named_modules():
        if isinstance(module, (nn.QuantizedLinear, nn.QuantizedEmbedding)):
            scales, biases = module.scales, module.get("biases")
            if biases is not None:
                scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
            spec = {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}
            values[f"{path}.weight"] = mx.dequantize(module.weight, scales, biases, dtype=mx.float32, **spec)
    for name, array in parameters(model).items():
        if not name.endswith((".scales", ".biases")):
            values.setdefault(name, array.astype(mx.float32))
    twin: Any = load_model(folder, dtype="float32")
    twin.load_weights(list(values.items()))
    return twin


@dataclass
class Format:
    """A model in a format, its dense float32 twin, and what 32 bits are off in it."""

    checkpoint: str
    kind: str
    model: Any
    processor: Any
    twin: Any
    own_error: float  # of float32, of the largest logit

    @property
    def bound(self) -> float:
        """Of the model's error, of the largest logit."""
        dtype = number_type(self.model)
        return FLOAT32 if dtype == mx.float32 else EPSILONS[dtype] / EPSILONS[mx.float32] * self.own_error

    @property
    def bound_alike(self) -> float:
        """The same, of what is computed twice: on a CPU in much the same order."""
        return self.bound / 5 if mx.default_device() == mx.Device(mx.cpu) else self.bound


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Format]:
    """Gives a checkpoint in a format; the last ones are kept."""

    @cache
    def folder_of(checkpoint: str, kind: str) -> Path:
        return set_up(checkpoint, kind, tmp_path_factory.mktemp("formats") / "model")

    @cache
    def own_error(checkpoint: str, kind: str, golden: Callable[[str], GoldenCase]) -> float:
        twin = dense_twin(load_model(folder_of(checkpoint, kind), dtype="float32"), GOLDEN / checkpoint)
        inputs = golden(BATCHES[checkpoint]).inputs
        single = logits_of(twin, inputs)
        twin.set_dtype(mx.float64)
        with mx.stream(mx.cpu):  # no GPU has float64
            return difference(single, logits_of(twin, inputs), real_tokens(inputs))

    @lru_cache(maxsize=2)
    def made(checkpoint: str, kind: str, dtype: str, golden: Callable[[str], GoldenCase]) -> Format:
        model, processor = load(folder_of(checkpoint, kind), dtype=dtype)
        twin = dense_twin(model, GOLDEN / checkpoint)
        return Format(checkpoint, kind, model, processor, twin, own_error(checkpoint, kind, golden))

    return made


@pytest.fixture(params=FORMATS, ids=lambda names: "-".join(names), scope="module")
def format(request, formats, golden) -> Format:
    return formats(*request.param, golden)


def logits_of(model: Any, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """(B, L + steps, vocabulary): of a prompt at once, then of single tokens."""
    cache, mask = Cache(model.config.text_config), inputs["attention_mask"]
    made = [model(**inputs, past_key_values=cache).logits]
    types = {made[0].dtype, *(array.dtype for array in cache.arrays)}
    for step in STEPS:
        mask = np.concatenate([mask, np.ones_like(mask[:, :1])], axis=1)
        made.append(model(np.full((len(mask), 1), step), attention_mask=mask, past_key_values=cache).logits)
    logits = mx.concatenate(made, axis=1)
    assert types | {logits.dtype, *(array.dtype for array in cache.arrays)} == {number_type(model)}
    return np.array(logits if logits.dtype == mx.float64 else logits.astype(mx.float32))


def real_tokens(inputs: dict[str, np.ndarray]) -> np.ndarray:
    """(B, L + steps) bool."""
    mask = inputs["attention_mask"]
    return np.concatenate([mask, np.ones((len(mask), len(STEPS)))], axis=1).astype(bool)


def difference(one: np.ndarray, other: np.ndarray, real: np.ndarray) -> float:
    """Of logits at real tokens, of the largest."""
    return float(np.abs(one - other)[real].max() / np.abs(other[real]).max())


def rows_alone(case: GoldenCase, factor: int) -> Iterator[dict[str, np.ndarray]]:
    """The rows of a batch, each with its pictures and without padding."""
    image_token, view = 396, 0
    for row, mask in enumerate(case.arrays["attention_mask"].astype(bool)):
        ids = case.arrays["input_ids"][row][mask][None]
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        missing, first = int((ids == image_token).sum()), view
        while missing > 0:
            missing -= int(case.arrays["spatial_shapes"][view].prod()) // factor**2
            view += 1
        if view > first:
            inputs["pixel_values"] = case.pixel_values[first:view]
            inputs["spatial_shapes"] = case.arrays["spatial_shapes"][first:view]
        yield inputs


# Prompts


@pytest.mark.sampled(8)
def test_a_format_is_what_it_says(format):
    """Quantised are the modules whose rows groups divide. All floating-point numbers, those of pictures too, are of one
    type."""
    modules = dict(format.model.named_modules())
    packed = {path for path, module in modules.items() if hasattr(module, "bits")}
    group = QUANTISED.get(format.kind, {}).get("q_group_size", 16 if format.kind == "nvfp4" else 32)
    if format.kind == DENSE:
        assert not packed
    else:
        divided = {  # rows of 56 and 72, 96 and 88, 64
            "model.multi_modal_projector.linear_2": False,
            "model.language_model.layers.1.feed_forward.w2": 96 % group == 0 and format.checkpoint == "gen2",
            "model.language_model.layers.1.feed_forward.w1": True,
            "model.language_model.embed_tokens": True,
            "model.multi_modal_projector.linear_1": True,
        }
        assert {path: path in packed for path in divided} == divided
    arrays = parameters(format.model).values()
    grid = np.array([[4, 6]])
    features = format.model.get_image_features(np.ones((1, 24, 768), np.float32), grid)
    made = [*features.last_hidden_state, *features.pooler_output]
    types = {array.dtype for array in [*arrays, *made] if mx.issubdtype(array.dtype, mx.floating)}
    assert types == {number_type(format.model)}


@pytest.mark.sampled(8)
def test_prompts_with_pictures_are_the_dense_models(format, golden):
    """One view, and tiles; then single tokens."""
    for case_id in PICTURES[format.checkpoint]:
        inputs = golden(case_id).inputs
        off = difference(logits_of(format.model, inputs), logits_of(format.twin, inputs), real_tokens(inputs))
        assert off <= format.bound, f"{case_id}: {off:.1e}"


@pytest.mark.sampled(8)
def test_padded_batches_are_the_dense_models_and_each_row_alone(format, golden):
    case = golden(BATCHES[format.checkpoint])
    real, batch = real_tokens(case.inputs), logits_of(format.model, case.inputs)
    off = difference(batch, logits_of(format.twin, case.inputs), real)
    assert off <= format.bound, f"{off:.1e}"
    for row, inputs in enumerate(rows_alone(case, format.model.config.downsample_factor)):
        alone = logits_of(format.model, inputs)[0]
        off = difference(batch[row][real[row]], alone, np.ones(len(alone), bool))
        assert off <= format.bound_alike, f"row {row}: {off:.1e}"


# Conversations

OPTIONS = GenerationOptions(max_tokens=5, temperature=0.0, logprobs=True)


@dataclass
class Answer:
    """Of a turn: tokens, their logprobs, and how many tokens of the prompt were run."""

    tokens: list[int]
    logprobs: list[float]
    run: int

    @classmethod
    def of(cls, pieces: Iterator[GenerationResponse]) -> "Answer":
        made = list(pieces)
        tokens = [token for piece in made for token in piece.tokens]
        statistics = made[-1].statistics
        assert len(tokens) == OPTIONS.max_tokens and statistics is not None
        logprobs = [number for piece in made for number in piece.logprobs or ()]
        return cls(tokens, logprobs, statistics.prompt_tokens - statistics.cached_tokens)


def check(format: Format, messages: list[dict[str, Any]], answer: Answer) -> None:
    """The answer's tokens are the likeliest in a run of the whole conversation from nothing, in one piece, and have the
    logprobs that they have there."""
    inputs = format.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    body, images = format.model.model, None
    if "pixel_values" in inputs:
        images = mx.concatenate(body.get_image_features(inputs["pixel_values"], inputs["spatial_shapes"]).pooler_output)
    said = body.embed(np.array([answer.tokens[:-1]]))  # a placeholder that was said is no picture
    embeds = mx.concatenate([body.embed(inputs["input_ids"], images), said], axis=1)
    logits = np.array(format.model(inputs_embeds=embeds).logits.astype(mx.float32))[0]
    # each logit, and the sum behind a logprob, is off by the bound at most
    bound = 2 * format.bound_alike * np.abs(logits).max()
    for row, token, logprob in zip(logits[-len(answer.tokens) :], answer.tokens, answer.logprobs, strict=True):
        expected = row[token] - row.max() - np.log(np.exp(row - row.max()).sum())
        assert abs(logprob - expected) <= bound
        assert row[token] >= row.max() - bound


@pytest.mark.sampled(8)
def test_conversations_are_those_of_a_run_from_nothing(format):
    """A second turn, its retry, and what follows when it is taken back."""
    chat = Chat(format.model, format.processor, options=OPTIONS)

    def asked(text: str, name: str | None = None) -> Answer:
        answer = Answer.of(chat.stream(text, picture(name) if name else None))
        check(format, chat.messages[:-1], answer)
        return answer

    first = asked("What is this?", "landscape")
    second = asked("And that?", "small")
    again = Answer.of(chat.retry())
    assert again.run == 0 and (again.tokens, again.logprobs) == (second.tokens, second.logprobs), "to the last digit"
    chat.undo()
    third = asked("Why?")
    assert third.run < 30 < second.run < first.run + 20, "each runs its own tokens"
    chat.undo()
    twin = chat.fork()
    asked("And that?", "small")
    check(format, twin.messages[:1], Answer.of(twin.retry()))
