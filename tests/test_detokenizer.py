"""Text as its tokens come: pieces join to the decoded answer, and none splits a character."""

import time

import pytest
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_lfm2vl import GenerationOptions
from mlx_lfm2vl.generation.detokenizer import Detokenizer
from mlx_lfm2vl.processing.conversation import CALL_END, CALL_START
from mlx_lfm2vl.processing.tokenizer import Tokenizer

TOKENIZERS = {name: Tokenizer.from_folder(GOLDEN / name) for name in ("gen2", "gen25")}
GEN2 = TOKENIZERS["gen2"]
CALLS = [GEN2.backend.token_to_id(token) for token in (CALL_START, CALL_END)]
any_ids = st.integers(0, 900).filter(lambda id: id not in CALLS)
# Most tokens of a random text are whole characters. These are single bytes of all kinds, so that characters break.
byte_ids = [GEN2.convert_tokens_to_ids(piece) for piece in GEN2.tokenize("".join(map(chr, range(0x2500, 0x2600))))]


def detokenizer(tokenizer: Tokenizer = GEN2, ends=(), **options) -> Detokenizer:
    return Detokenizer(tokenizer, GenerationOptions(**options), ends)


def plain(ids: list[int], tokenizer: Tokenizer = GEN2) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_as_the_reference_decodes(name, golden_json):
    for case in golden_json("tokens")[name]["decode"]:
        stream = detokenizer(TOKENIZERS[name])
        text = "".join([stream.push(id) for id in case["ids"]]) + stream.finish()
        assert text == case["text_without_special_tokens"]


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.lists(any_ids, max_size=60), st.lists(st.sampled_from(byte_ids), max_size=60)))
def test_pieces_add_up_to_the_whole(ids):
    stream, text = detokenizer(), ""
    for id in ids:
        text += stream.push(id)
        assert plain(ids).startswith(text)
    assert text + stream.finish() == plain(ids)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40))
def test_no_piece_splits_a_character(text):
    stream, ids = detokenizer(), GEN2.encode(text, add_special_tokens=False)
    pieces = [stream.push(id) for id in ids]
    assert "".join(pieces) + stream.finish() == plain(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_it_goes_on_after_its_end():
    stream, first = detokenizer(), GEN2.encode("日", add_special_tokens=False)[0]
    assert (stream.push(first), stream.finish()) == ("", "\ufffd")
    assert "".join(map(stream.push, GEN2.encode("ab", add_special_tokens=False))) + stream.finish() == "ab"


@pytest.mark.parametrize("kind", ["invalid", "unfinished", "special", "unknown"])
def test_tokens_without_text_take_constant_time_each(kind):
    ids = (
        {
            "invalid": [GEN2.convert_tokens_to_ids("\u0122")],  # a byte that begins no character
            "unfinished": GEN2.encode("日", add_special_tokens=False)[:1],
            "special": [GEN2.pad_token_id],
            "unknown": [5000],
        }[kind]
        * 20_000
    )
    stream, started = detokenizer(), time.process_time()
    text = "".join(map(stream.push, ids)) + stream.finish()
    assert time.process_time() - started < 10
    assert text == plain(ids)


def test_stop_texts_and_end_tokens():
    ids = GEN2.encode("one two three", add_special_tokens=False)
    stream = detokenizer(stop=("two",))
    text = ""
    for id in ids:
        text += stream.push(id)
        if stream.stopped:
            break
    assert (text, stream.stopped) == ("one ", True)
    stream = detokenizer(ends=(GEN2.eos_token_id,), stop=("threefold",))
    assert "".join(map(stream.push, ids)) == "one two "
    assert (stream.push(GEN2.eos_token_id), stream.stopped) == ("three", True)
