"""Answers that hold to a form: whatever the model would rather say, and whoever is answered beside it."""

import json
import re
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN, Loaded, cache_by_backend, logits_of, statistics_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from mlx_lfm2vl import (
    Chat,
    Completion,
    ConstraintError,
    Engine,
    GenerationOptions,
    GenerationRequest,
    GenerationResponse,
    OptionError,
    OutOfMemoryError,
    PromptCache,
    ResponseFormat,
    generate,
    generate_batch,
    load,
    stream_generate,
)
from mlx_lfm2vl.generation import prefill as prefill_module
from mlx_lfm2vl.generation import scheduler as scheduler_module
from mlx_lfm2vl.generation.request import encode
from mlx_lfm2vl.generation.scheduler import Scheduler
from mlx_lfm2vl.generation.watch import Cancelled

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
HOT = GenerationOptions(temperature=2.0, max_tokens=200)


@cache_by_backend
def random_model() -> Loaded:
    return load(GOLDEN / "gen25")


@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize("seed", range(3))
def test_random_weights_answer_under_a_schema(seed):
    model, processor = random_model()
    text = generate(model, processor, "Who?", options=HOT, response_format=PERSON, seed=seed)
    Draft202012Validator(PERSON).validate(json.loads(text))


@pytest.mark.backends("mlx", "numpy")
def test_random_weights_answer_as_a_regex_says():
    model, processor = random_model()
    form = ResponseFormat.regex(r"[A-Z]{2}-\d{3}")
    options = GenerationOptions(response_format=form, temperature=2.0, seed=1)
    answer = list(stream_generate(model, processor, "Which?", options=options))
    assert re.fullmatch(r"[A-Z]{2}-\d{3}", "".join(piece.text for piece in answer))
    assert answer[-1].finish_reason == "stop"


@pytest.mark.backends("mlx", "numpy")
def test_random_weights_choose_one_of_the_texts():
    model, processor = random_model()
    form = ResponseFormat.choice(["a cat", "a dog", "naïve: $[x]"])
    answers = {generate(model, processor, "What?", options=HOT, response_format=form, seed=seed) for seed in range(8)}
    assert len(answers) > 1 and answers <= {"a cat", "a dog", "naïve: $[x]"}


FORMS: list[Any] = [
    None,
    PERSON,
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    ResponseFormat.regex(r"(ab|c){2,6}"),
    ResponseFormat.choice(["a long text that is forced", "a long text that is not", "b"]),
    ResponseFormat.grammar('start: "x" start | "end of it all"'),
]


@st.composite
def requests(draw: st.DrawFn) -> GenerationRequest:
    options = GenerationOptions(
        temperature=draw(st.sampled_from([0.0, 0.7, 2.0])),
        max_tokens=draw(st.integers(1, 60)),
        seed=draw(st.integers(0, 99)),
        repetition_penalty=draw(st.sampled_from([None, 1.3])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.5])),
        top_k=draw(st.sampled_from([None, 4])),
        logprobs=draw(st.booleans()),
        logit_bias=draw(st.sampled_from([{}, {40: 5.0, 50: -3.0}])),
        response_format=draw(st.sampled_from(FORMS)),
    )
    return GenerationRequest(draw(st.sampled_from(["Hi", "Who is that over there?"])), options=options)


def alone(request: GenerationRequest) -> tuple[str, tuple[int, ...], str]:
    model, processor = random_model()
    made = Completion.of(list(stream_generate(model, processor, request.prompt, options=request.options)))
    return made.text, made.tokens, made.finish_reason


@pytest.mark.backends("mlx", "numpy")
@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(requests(), min_size=2, max_size=5), st.integers(2, 4))
def test_rows_with_forms_and_free_ones_answer_as_if_alone(rows, batch_size):
    model, processor = random_model()
    made = list(generate_batch(model, processor, rows, batch_size=batch_size))
    assert [(each.text, each.tokens, each.finish_reason) for each in made] == [alone(row) for row in rows]


@pytest.mark.backends("mlx", "numpy")
def test_forced_tokens_take_one_step_together():
    model, processor = random_model()
    form = ResponseFormat.choice(["this text is long and certain"])
    steps = {}
    for logprobs in (False, True):  # whose tokens are run one by one
        options = GenerationOptions(response_format=form, logprobs=logprobs)
        answer = Completion.of(list(stream_generate(model, processor, "Say it.", options=options)))
        assert (answer.text, answer.finish_reason) == ("this text is long and certain", "stop")
        steps[logprobs] = statistics_of(answer).model_steps
        tokens = len(answer.tokens)
    assert steps == {False: 2, True: tokens} and tokens > 5


@pytest.mark.backends("mlx", "numpy")
def test_a_row_with_forced_tokens_runs_beside_one_without(monkeypatch):
    """Their masks are of one size; a step that failed would be repeated for each alone, which nobody would see."""

    def fail(self: Scheduler, rows: object, error: Exception) -> None:
        raise error

    monkeypatch.setattr(Scheduler, "_failed", fail)
    forms = [ResponseFormat.choice(["this text is long and certain"]), ResponseFormat.regex("[a-z]{20}")]
    rows = [GenerationRequest("Hi", options=GenerationOptions(response_format=form, logprobs=True)) for form in forms]
    made = list(generate_batch(*load(GOLDEN / "gen2"), rows))  # whose 832 tokens fill all bits of their words
    assert made[0].text == "this text is long and certain" and re.fullmatch("[a-z]{20}", made[1].text)


@pytest.mark.backends("mlx", "numpy")
def test_top_logprobs_are_those_of_the_model_itself():
    model, processor = random_model()
    options = GenerationOptions(temperature=1.5, seed=1, max_tokens=5, top_logprobs=4, logit_bias={9: 3.0})
    made = list(stream_generate(model, processor, "Hi", options=options))
    tops = [top for piece in made for top in piece.top_logprobs or ()]
    own = [logprob for piece in made for logprob in piece.logprobs or ()]
    tokens = [token for piece in made for token in piece.tokens]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=True, return_tensors="np"
    )
    logits = np.array(logits_of(model, np.concatenate([prompt[0], tokens])[None]))[0, len(prompt[0]) - 1 : -1]
    wanted = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))
    assert len(tops) == len(tokens) == 5
    for row, top, token, logprob in zip(wanted, tops, tokens, own, strict=True):
        best = np.argsort(-row, kind="stable")[:4]
        assert [each.id for each in top] == best.tolist()
        np.testing.assert_allclose([each.logprob for each in top], row[best], atol=1e-4)
        assert logprob == pytest.approx(row[token], abs=1e-4)
        assert [each.text for each in top] == [processor.tokenizer.decode([each.id]) for each in top]


@pytest.mark.backends("mlx", "numpy")
def test_rows_with_top_logprobs_get_their_own_number_of_them():
    model, processor = random_model()
    rows = [GenerationRequest("Hi", options=GenerationOptions(max_tokens=6, top_logprobs=k, seed=1)) for k in (0, 2, 5)]
    scheduler = Scheduler(model, processor.tokenizer)
    ids = [scheduler.add(encode(model, processor, row), started=0.0).id for row in rows]
    counts: dict[int, list[int] | None] = {id: None for id in ids}
    while len(scheduler):
        for id, item in scheduler.step():
            assert isinstance(item, GenerationResponse)
            if item.top_logprobs is not None:
                counts[id] = (counts[id] or []) + [len(top) for top in item.top_logprobs]
    assert [counts[id] for id in ids] == [None, [2] * 6, [5] * 6]


class Counting:
    """Forbids a token after each call, and remembers how often it was called and what it saw."""

    def __init__(self, calls: int = 0):
        self.calls = calls
        self.seen: list[list[int]] = []

    def __call__(self, tokens, logits):
        self.calls += 1
        self.seen.append(tokens.tolist())
        logits[:, 100:] = -mx.inf
        return mx.where(mx.arange(logits.shape[1]) == self.calls, 100.0, logits)

    def copy(self):
        copies.append(Counting(self.calls))
        return copies[-1]


copies: list[Counting] = []


@pytest.mark.backends("mlx", "numpy")
def test_every_answer_has_a_processor_of_its_own():
    model, processor = random_model()
    options = GenerationOptions(max_tokens=4, temperature=0.0, logits_processors=(Counting(20),))
    rows = [GenerationRequest(text, options=options) for text in ("Hi", "Who is that?", "Hi")]
    copies.clear()
    made = list(generate_batch(model, processor, rows, batch_size=2))
    assert [each.tokens for each in made] == [(21, 22, 23, 24)] * 3 and len(copies) == 3
    for each in copies:
        assert each.calls >= 24
        assert [tokens[-3:] for tokens in each.seen][3:4] == [[21, 22, 23]]


@pytest.mark.backends("mlx", "numpy")
def test_processors_that_leave_no_token_end_their_row_alone():
    model, processor = random_model()
    nothing = GenerationOptions(max_tokens=4, logits_processors=(lambda tokens, logits: logits - mx.inf,))
    rows = [GenerationRequest("Hi", options=each) for each in (nothing, GenerationOptions(max_tokens=4))]
    made = list(generate_batch(model, processor, rows))
    assert [each.finish_reason for each in made] == ["error", "length"]
    assert "logits_processors" in str(made[0].error)


def fewer(tokens: mx.array, logits: mx.array) -> mx.array:
    return logits[:, :5]


def raising(tokens: object, given: object) -> Any:
    raise ZeroDivisionError("division\nby zero")


class Uncopied:
    def copy(self) -> Any:
        raise KeyError("state")

    __call__ = staticmethod(raising)


class Forgetful:
    def __call__(self, tokens: mx.array, logits: mx.array) -> None:
        pass


@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (fewer, r"logits processor fewer returned an array \(1, 5\), expected an mx.array of logits \(1, \d+\)"),
        (Forgetful(), "logits processor Forgetful returned NoneType, expected"),
        (lambda tokens, logits: np.array(logits), "<lambda> returned ndarray, expected"),
        (lambda tokens, logits: logits[0], r"<lambda> returned an array \(\d+,\), expected"),
    ],
    ids=["fewer", "none", "numpy", "flat"],
)
def test_a_processor_without_logits_ends_its_row_alone(processor, message):
    model, tokens = random_model()
    wrong = GenerationOptions(max_tokens=4, logits_processors=(processor,))
    rows = [GenerationRequest("Hi", options=each) for each in (wrong, GenerationOptions(max_tokens=4))]
    made = list(generate_batch(model, tokens, rows))
    assert [each.finish_reason for each in made] == ["error", "length"]
    assert isinstance(made[0].error, OptionError) and re.search(message, str(made[0].error))
    with pytest.raises(OptionError, match=message):
        list(stream_generate(model, tokens, "Hi", options=wrong))


@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"logits_processors": (raising,)}, "the logits processor raising raised ZeroDivisionError: division"),
        ({"logits_processors": (Uncopied(),)}, "the logits processor Uncopied raised KeyError: 'state'"),
        ({"draft": raising}, "the draft raising raised ZeroDivisionError: division"),
        ({"draft": Uncopied()}, "the draft Uncopied raised KeyError: 'state'"),
        ({"draft": lambda tokens, count: None}, "the draft .*<lambda> gave None, expected token ids"),
        ({"draft": lambda tokens, count: "ab"}, "the draft .*<lambda> gave 'ab', expected token ids"),
    ],
    ids=["processor", "processor-copy", "draft", "draft-copy", "draft-none", "draft-text"],
)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_function_that_fails_ends_its_row_alone(option, message, batch_size):
    model, tokens = random_model()
    plain = GenerationOptions(max_tokens=6, temperature=0.0)
    wrong = replace(plain, **option)
    rows = [GenerationRequest("Hi", options=each) for each in (plain, wrong, plain)]
    made = list(generate_batch(model, tokens, rows, batch_size=batch_size))
    assert [each.finish_reason for each in made] == ["length", "error", "length"]
    assert isinstance(made[1].error, OptionError) and re.fullmatch(message, str(made[1].error))
    assert made[0].tokens == made[2].tokens == next(iter(generate_batch(model, tokens, rows[:1]))).tokens
    with pytest.raises(OptionError, match=message):
        list(stream_generate(model, tokens, "Hi", options=wrong))


@pytest.mark.backends("mlx", "numpy")
def test_penalties_count_the_tokens_of_the_answer():
    """Against the formula: greedy tokens whose logits lose c * frequency + (c > 0) * presence."""
    model, processor = random_model()
    plain = GenerationOptions(temperature=0.0, max_tokens=12, logit_bias={77: 30.0, 78: 29.5})
    prompt = len(encode(model, processor, GenerationRequest("Hi hi hi")).ids)

    def penalised(tokens: mx.array, logits: mx.array) -> mx.array:
        ids, counts = np.unique(np.array(tokens)[prompt:], return_counts=True)
        lost = np.zeros(logits.shape, np.float32)
        lost[0, ids] = counts * 0.4 + 0.3
        return logits - mx.array(lost)

    ours, theirs, free = (
        Completion.of(list(stream_generate(model, processor, "Hi hi hi", options=options))).tokens
        for options in (
            replace(plain, frequency_penalty=0.4, presence_penalty=0.3),
            replace(plain, logits_processors=(penalised,)),
            plain,
        )
    )
    assert ours == theirs != free and len(ours) > len(set(ours))


@pytest.mark.backends("mlx", "numpy")
def test_a_biased_token_is_always_taken_or_never():
    model, processor = random_model()
    for bias, wanted in ((100, {77}), (-100, set())):
        answer = stream_generate(model, processor, "Hi", max_tokens=6, temperature=1.0, seed=2, logit_bias={77: bias})
        assert set(Completion.of(list(answer)).tokens) & {77} == wanted


@pytest.mark.backends("mlx", "numpy")
def test_several_answers_share_a_prefill():
    model, processor = random_model()
    question = GenerationRequest("Tell me all. " * 20, options=GenerationOptions(max_tokens=5, temperature=2.0, seed=5))
    made = list(generate_batch(model, processor, question.repeat(4)))
    assert len({each.tokens for each in made}) == 4
    for k, each in enumerate(made):
        options = GenerationOptions(max_tokens=5, temperature=2.0, seed=5 + k)
        assert each.tokens == alone(GenerationRequest(question.prompt, options=options))[1]
    run = [statistics_of(each).prompt_tokens - statistics_of(each).cached_tokens for each in made]
    assert sum(run) < 2 * statistics_of(made[0]).prompt_tokens


@pytest.mark.backends("mlx", "numpy")
def test_stop_texts_and_limits_end_an_answer_of_a_form():
    model, processor = random_model()
    form = ResponseFormat.choice(["one two three four five six seven"])
    for more, text, reason in (
        (GenerationOptions(stop=("four",)), "one two three ", "stop"),
        (GenerationOptions(max_tokens=3), None, "length"),
        (GenerationOptions(max_tokens=3, logprobs=True), None, "length"),
    ):
        answer = stream_generate(model, processor, "Say", options=more, response_format=form)
        made = Completion.of(list(answer))
        assert made.finish_reason == reason and (text is None or made.text == text)
        assert "one two three four five six seven".startswith(made.text)
    assert len(made.tokens) == 3


@pytest.mark.backends("mlx", "numpy")
def test_a_chat_holds_each_turn_to_its_form_and_goes_on():
    model, processor = random_model()
    for form in (PERSON, None):
        chats = [Chat(model, processor), Chat(model, processor)]
        for chat in chats:
            first = chat.ask("Who?", options=GenerationOptions(response_format=PERSON, temperature=2.0, seed=1))
            Draft202012Validator(PERSON).validate(json.loads(first))
        chats[1].prompt_cache.clear()
        options = GenerationOptions(response_format=form, temperature=2.0, seed=2, max_tokens=40)
        second = [chat.ask("And that?", options=options) for chat in chats]
        assert second[0] == second[1]


@pytest.mark.backends("mlx", "numpy")
def test_an_answer_that_was_cut_off_goes_on_by_its_form():
    model, processor = random_model()
    chat = Chat(model, processor)
    options = GenerationOptions(response_format=PERSON, temperature=2.0, seed=1, max_tokens=9)
    first = chat.ask("Who?", options=options)
    more = replace(options, max_tokens=200)
    rest = "".join(piece.text for piece in chat.continue_final_message(options=more))
    Draft202012Validator(PERSON).validate(json.loads(first + rest))
    assert chat.ask("And?", options=GenerationOptions(response_format=ResponseFormat.choice(["no JSON"]))) == "no JSON"
    with pytest.raises(ConstraintError, match="the answer so far does not hold"):
        list(chat.continue_final_message(options=more))


@pytest.mark.backends("mlx", "numpy")
def test_memory_that_runs_out_in_a_forced_block_changes_no_answer(monkeypatch):
    options = GenerationOptions(response_format=PERSON, temperature=2.0, seed=4)
    expected = alone(GenerationRequest("Who?", options=options))
    blocks, calls = prefill_module.prefill_forced, []

    def scarce(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise OutOfMemoryError("no memory")
        yield from ()
        return (yield from blocks(*arguments))

    monkeypatch.setattr(scheduler_module, "prefill_forced", scarce)
    assert alone(GenerationRequest("Who?", options=options)) == expected and len(calls) > 2


@pytest.mark.backends("mlx", "numpy")
def test_an_answer_can_be_cancelled_while_forced_tokens_run():
    model, processor = random_model()
    form = ResponseFormat.regex("a text that is long enough to be run as a block[ab]{90}")
    scheduler = Scheduler(model, processor.tokenizer, prompt_cache=PromptCache())
    request = GenerationRequest("Say", options=GenerationOptions(response_format=form))
    row = scheduler.add(encode(model, processor, request), started=0.0)
    other = scheduler.add(encode(model, processor, GenerationRequest("Hi", options=request.options)), started=0.0)
    for _ in range(5):
        if not row.rejoins:
            scheduler.step()
    assert row.rejoins
    scheduler.cancel(row.id)
    scheduler.cancel(other.id)
    reasons = {id: item.finish_reason for id, item in scheduler.step() if isinstance(item, GenerationResponse)}
    assert reasons[row.id] == "cancelled" and not len(scheduler)


def test_text_that_is_held_back_is_shown_where_forced_tokens_are_cancelled(monkeypatch):
    def cancelled(*_):
        raise Cancelled
        yield

    monkeypatch.setattr(scheduler_module, "prefill_forced", cancelled)
    model, processor = random_model()
    text = "a text that is long enough to be run as a block"
    options = GenerationOptions(response_format=ResponseFormat.regex(f"{text}[ab]{{90}}"), stop=(f"{text}!",))
    scheduler = Scheduler(model, processor.tokenizer)
    row = scheduler.add(encode(model, processor, GenerationRequest("Say", options=options)), started=0.0)
    shown = []
    while len(scheduler):
        shown += [item for _, item in scheduler.step() if isinstance(item, GenerationResponse)]
    assert row.rejoins and shown[-1].finish_reason == "cancelled"
    assert "".join(item.text for item in shown) == processor.tokenizer.decode(row.generated) != ""


@pytest.mark.backends("mlx", "numpy")
def test_a_prompt_cache_changes_no_answer_of_a_form():
    model, processor = random_model()
    cache, options = PromptCache(), GenerationOptions(response_format=PERSON, temperature=2.0, seed=2)
    expected = generate(model, processor, "Who is it? " * 20, options=options)
    for _ in range(3):
        assert generate(model, processor, "Who is it? " * 20, options=options, prompt_cache=cache) == expected


def test_an_engine_answers_rows_with_forms_beside_free_ones():
    with Engine(lambda: load(GOLDEN / "gen25")) as engine:
        forms = [PERSON, None, {"type": "choice", "choice": ["yes", "no"]}]
        options = [
            GenerationOptions(response_format=form, temperature=2.0, seed=seed, max_tokens=40)
            for seed, form in enumerate(forms)
        ]
        asked = [engine.submit("Who?", options=each) for each in options]
        made = [each.result(60) for each in asked]
        with pytest.raises(ConstraintError):
            engine.submit("Who?", options=GenerationOptions(response_format={"not": {}}))
    for each, own in zip(made, options, strict=True):
        assert (each.text, each.tokens, each.finish_reason) == alone(GenerationRequest("Who?", options=own))
