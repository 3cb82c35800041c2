"""Models as drafts: what they read, what they save, and answers that go on without them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest
from conftest import GOLDEN, picture, statistics_of
from drafts import GREEDY, Ticks, answered, demo, loaded, requests, same, some
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mlx_lfm2vl import (
    DraftModel,
    GenerationOptions,
    GenerationRequest,
    NotFiniteError,
    OptionError,
    OutOfMemoryError,
    generate_batch,
    load,
)
from mlx_lfm2vl.generation import draft_model
from mlx_lfm2vl.generation.chunked_prefill import Prompt, prefill_in_pieces
from mlx_lfm2vl.generation.decode import GenerationBatch
from mlx_lfm2vl.generation.pace import Pace
from mlx_lfm2vl.generation.speculation import MOST, SHORTEST_ANSWER

pytestmark = [pytest.mark.backends("mlx", "numpy"), pytest.mark.usefixtures("by_acceptance_only", "nothing_fails")]

# A draft model


def test_a_draft_model_that_agrees_takes_the_fewest_steps():
    """The model itself, which sees the same picture; beside others in a batch, too."""
    scene = GOLDEN.parent.parent / "examples" / "scene.png"
    model = demo()[0]
    greedy = GenerationRequest("What is in this image?", scene, options=GenerationOptions(temperature=0.0))
    text = replace(greedy, prompt="Where is the ring?", images=None)
    plain = [answered(each, demo()) for each in (greedy, text)]
    with_draft = [replace(each, options=replace(each.options, draft=model)) for each in (greedy, text)]
    for made, own in zip(generate_batch(*demo(), with_draft), plain, strict=True):
        same(made, own)
        statistics = statistics_of(made)
        assert statistics.accepted_tokens >= statistics.drafted_tokens - MOST  # all but what is behind the end
    made = answered(with_draft[0], demo())
    assert len(made.tokens) == 20 and statistics_of(made).model_steps == 1 + 1 + 2


@some(4)
@given(requests(), st.integers(0, 9))
def test_a_draft_model_that_errs_changes_no_answer(request_, seed):
    model = load(GOLDEN / "gen2")[0]
    head = model.model.language_model.embedding_norm
    noise = mx.random.normal(head.weight.shape, key=mx.random.key(seed)) * 0.2
    head.weight = head.weight + noise  # it agrees now and then
    plain = answered(request_)
    same(answered(replace(request_, options=replace(request_.options, draft=DraftModel(model)))), plain)
    made = answered(GenerationRequest("What is this?", options=replace(GREEDY, draft=DraftModel(model))))
    assert 0 < statistics_of(made).accepted_tokens < statistics_of(made).drafted_tokens


def test_a_draft_model_of_other_tokens_is_refused():
    options = replace(GREEDY, draft=DraftModel(demo()[0]))
    with pytest.raises(OptionError, match="the draft model has vocab_size 1380, the model 832"):
        answered(GenerationRequest("Hi", options=options))


def test_a_draft_model_reads_the_prompt_before_the_first_token(monkeypatch):
    """Which takes none of the time that drafts may cost."""
    scene = GOLDEN.parent.parent / "examples" / "scene.png"
    options = replace(GREEDY, max_tokens=21)
    request = GenerationRequest("What is in this image?", scene, options=options)
    plain, model = answered(request, demo()), demo()[0]
    ticks = Ticks(monkeypatch)
    ticks.cost(GenerationBatch, "step", lambda: 1.0)
    ticks.cost(GenerationBatch, "verify", lambda: 2.0)
    ticks.cost(DraftModel, "_run", lambda: 0.1)
    calls: list[str] = []

    def told(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def tell(*given: Any, **named: Any) -> Any:
            calls.append(name)
            return own(*given, **named)

        return tell

    monkeypatch.setattr(Pace, "begin", told("step", Pace.begin))
    monkeypatch.setattr(draft_model, "prefill_in_pieces", told("prompt", draft_model.prefill_in_pieces))
    made = answered(replace(request, options=replace(options, draft=DraftModel(model))), demo())
    same(made, plain)
    assert calls[0] == "prompt" and calls.count("prompt") == 1
    statistics = statistics_of(made)
    assert statistics.accepted_tokens >= 12 and statistics.model_steps <= 10


@pytest.fixture
def read(monkeypatch) -> list[int]:
    """The tokens that draft models run of each prompt."""
    lengths: list[int] = []

    def noted(model: Any, prompt: Prompt, *given: Any, **named: Any) -> Any:
        lengths.append(prompt.input_ids.shape[1])
        return prefill_in_pieces(model, prompt, *given, **named)

    monkeypatch.setattr(draft_model, "prefill_in_pieces", noted)
    return lengths


def test_a_draft_model_reads_of_a_prompt_what_is_new(read):
    """The same pictures and turns are not run again; other pictures are."""
    scene = picture("small")
    other = scene.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    options = replace(GREEDY, max_tokens=20)
    drafted = replace(options, draft=DraftModel(loaded()[0]))

    def asked(image: Any, turns: Sequence[str]) -> int:
        said: list[dict[str, Any]] = [
            {"role": ("user", "assistant")[number % 2], "content": turn} for number, turn in enumerate(turns)
        ]
        said[0]["content"] = [{"type": "image", "image": image}, {"type": "text", "text": turns[0]}]
        plain = answered(GenerationRequest(said, options=options))
        made = answered(GenerationRequest(said, options=drafted))
        same(made, plain)
        statistics = statistics_of(made)
        assert statistics.accepted_tokens == statistics.drafted_tokens > 0
        return statistics.prompt_tokens

    first = asked(scene, ["What is this?"])
    assert read == [first]
    asked(scene, ["What is this?"])
    assert read == [first]
    second = asked(scene, ["What is this?", "A ring.", "Where?"])
    assert read == [first, second - first]
    asked(other, ["What is this?"])
    assert read == [first, second - first, first]


def test_a_model_as_a_draft_reads_a_prompt_once(read):
    """Each answer has its own options; the states live as long as the model."""
    own = load(GOLDEN / "gen2")[0]
    made = [
        answered(GenerationRequest("What is this?", options=GenerationOptions(max_tokens=20, temperature=0, draft=own)))
        for _ in range(2)
    ]
    same(*made)
    assert read == [statistics_of(made[0]).prompt_tokens] and statistics_of(made[1]).accepted_tokens > 0


@pytest.mark.parametrize(("tokens", "reads"), [(SHORTEST_ANSWER - 1, False), (SHORTEST_ANSWER, True)])
def test_of_a_short_answer_no_draft_reads_the_prompt(tokens, reads, read):
    options = replace(GREEDY, max_tokens=tokens)
    plain = answered(GenerationRequest("Hi", options=options))
    made = answered(GenerationRequest("Hi", options=replace(options, draft=DraftModel(loaded()[0]))))
    same(made, plain)
    assert bool(read) == reads == bool(statistics_of(made).drafted_tokens)


@pytest.mark.parametrize(("verified", "reads"), [(1.5, 2), (50.0, 1)])
def test_drafts_that_do_not_pay_read_no_prompt(verified, reads, read, monkeypatch):
    """That of the next answer, while the loss is not paid for."""
    options = replace(GREEDY, max_tokens=30)
    rows = [GenerationRequest(prompt, options=options) for prompt in ("Hi", "What is this?")]
    plain, ticks = [answered(row) for row in rows], Ticks(monkeypatch)
    ticks.cost(GenerationBatch, "step", lambda: 1.0)
    ticks.cost(GenerationBatch, "verify", lambda: verified)
    drafted = [replace(row, options=replace(options, draft=DraftModel(loaded()[0]))) for row in rows]
    made = list(generate_batch(*loaded(), drafted, batch_size=1))
    for one, other in zip(made, plain, strict=True):
        same(one, other)
    assert len(read) == reads
    assert bool(statistics_of(made[1]).drafted_tokens) == (reads == 2)
    assert bool(statistics_of(made[1]).undrafted_steps) == (reads == 1)


ENDS: list[tuple[str, Exception]] = [
    ("prefill_in_pieces", OutOfMemoryError("of the prompt")),
    ("prefill_in_pieces", RuntimeError("[metal::malloc] Unable to allocate 9 bytes.")),
    ("encode_views_in_pieces", NotFiniteError("of a picture")),
    ("DraftModel._run", OutOfMemoryError("of a draft")),
]


@pytest.mark.parametrize(("where", "error"), ENDS, ids=["prompt", "Metal", "picture", "draft"])
def test_an_answer_goes_on_where_its_draft_model_cannot(where, error, monkeypatch):
    request = GenerationRequest("What is this?", picture("small"), options=GREEDY)
    plain = answered(request)

    def fail(*given: Any, **named: Any) -> Any:
        raise error

    monkeypatch.setattr(f"mlx_lfm2vl.generation.draft_model.{where}", fail)
    made = answered(replace(request, options=replace(GREEDY, draft=DraftModel(loaded()[0]))))
    same(made, plain)
    assert statistics_of(made).drafted_tokens == 0
