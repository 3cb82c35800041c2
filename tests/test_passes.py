"""Pieces of work: their size for published shapes and for any other, and the counts that they follow from."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_lfm2vl.config import Lfm2Config, Siglip2VisionConfig
from mlx_lfm2vl.generation.chunked_prefill import (
    GRANULE,
    LONGEST_CHUNK,
    PIECE_FLOPS,
    layer_flops,
    layers_per_piece,
    patches_per_pass,
    prefill_chunk,
    token_flops,
)
from mlx_lfm2vl.models.lfm2 import Lfm2Model
from mlx_lfm2vl.models.siglip2 import PATCHES_PER_PASS, Siglip2EncoderLayer, vision_passes
from mlx_lfm2vl.weights.names import parameters


def text_of(hidden: int, width: int, heads: int, layers: int, attention: list[int], **others: Any) -> Lfm2Config:
    sizes = {"hidden_size": hidden, "num_attention_heads": heads, "num_hidden_layers": layers, "vocab_size": 8}
    given = {"intermediate_size": width, "block_auto_adjust_ff_dim": False, "full_attn_idxs": attention}
    return Lfm2Config.from_dict({**sizes, **given, **others})


def vision_of(hidden: int, width: int, layers: int, heads: int) -> Siglip2VisionConfig:
    sizes = {"hidden_size": hidden, "intermediate_size": width, "num_hidden_layers": layers}
    return Siglip2VisionConfig.from_dict({**sizes, "num_attention_heads": heads})


SMALL_ATTENTION, LARGE_ATTENTION = [2, 5, 8, 10, 12, 14], [2, 5, 9, 13, 17, 21, 24, 27]
BASE, SO400M = vision_of(768, 3072, 12, 12), vision_of(1152, 4304, 27, 16)
TEXTS = {
    "450M": text_of(1024, 4608, 16, 16, SMALL_ATTENTION),
    "1.6B": text_of(2048, 8192, 32, 16, SMALL_ATTENTION),
    "3B": text_of(2048, 10752, 32, 30, LARGE_ATTENTION),
}
TOWERS = {"450M": BASE, "1.6B": vision_of(1152, 4304, 26, 16), "3B": SO400M}
TILE = (32, 32)
VIEWS = {
    "a small view": [(16, 16)],
    "a tile": [TILE],
    "ten tiles and a thumbnail": [TILE] * 10 + [(20, 48)],
    "a strip": [(2, 512)],
    "many small views": [(8, 12), (12, 8), (2, 2)] * 30,
}


def product_weights(module: Any) -> int:
    """Numbers in the matrices of a module; nothing is computed."""
    return sum(array.size for name, array in parameters(module).items() if array.ndim == 2 and "embed" not in name)


# The counts


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("keys", [0, 1, 513, 32_768])
def test_token_flops_are_those_of_the_models_matrices(name, keys):
    config = TEXTS[name]
    attention = sum("self_attn" in layer for layer in Lfm2Model(config).layers)
    assert attention == (8 if name == "3B" else 6)
    scores_and_sums = 2 * 2 * keys * config.num_attention_heads * 64  # a multiply and an add each
    assert token_flops(config, keys) == 2 * product_weights(Lfm2Model(config)) + attention * scores_and_sums


@pytest.mark.parametrize("config", [BASE, SO400M], ids=["base", "so400m"])
@pytest.mark.parametrize(("patches", "keys"), [(1, 1), (1024, 1024), (4096, 256)])
def test_layer_flops_are_those_of_the_towers_matrices(config, patches, keys):
    products = 2 * product_weights(Siglip2EncoderLayer(config))
    assert layer_flops(config, patches, keys) == patches * (products + 2 * 2 * keys * config.hidden_size)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), kinds=st.lists(st.sampled_from(["conv", "full_attention"]), min_size=1, max_size=6))
def test_token_flops_follow_any_shape(data, kinds):
    kv_heads, group = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    heads, width, keys = kv_heads * group, data.draw(st.integers(1, 300)), data.draw(st.integers(0, 5000))
    dim = data.draw(st.sampled_from([2, 16, 64, 80]))
    hidden = data.draw(st.sampled_from([heads * dim, 96]))
    config = text_of(
        hidden, width, heads, len(kinds), [], num_key_value_heads=kv_heads, head_dim=dim, layer_types=kinds
    )
    scores_and_sums = 4 * keys * heads * dim * kinds.count("full_attention")
    assert token_flops(config, keys) == 2 * product_weights(Lfm2Model(config)) + scores_and_sums


# Published shapes


def chunk_flops(config: Lfm2Config, rows: int, past: int, length: int) -> float:
    """Of `length` tokens in each row, token by token."""
    return rows * sum(token_flops(config, past + at + 1) for at in range(length))


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("past", [0, 900, 30_000])
def test_a_chunk_of_a_published_shape_is_a_piece_or_the_smallest(name, rows, past):
    chunk = prefill_chunk(TEXTS[name], rows, past)
    assert chunk == GRANULE or chunk_flops(TEXTS[name], rows, past, chunk) <= PIECE_FLOPS
    if chunk < LONGEST_CHUNK:  # and no smaller than it must be
        assert rows * (chunk + GRANULE) * token_flops(TEXTS[name], past + LONGEST_CHUNK) > PIECE_FLOPS


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("grids", VIEWS.values(), ids=VIEWS)
def test_a_vision_piece_of_a_published_shape_is_small_enough(name, grids):
    """In operations, or it is one layer of one view."""
    config = TOWERS[name]
    for part in vision_passes(grids, patches_per_pass(config, grids)):
        counts = [grids[index][0] * grids[index][1] for index in part]
        layer = sum(layer_flops(config, count, count) for count in counts)
        layers = layers_per_piece(config, [grids[index] for index in part])
        assert layers * layer <= PIECE_FLOPS or layers == len(part) == 1
        assert sum(counts) <= PATCHES_PER_PASS or len(part) == 1
        assert layers == config.num_hidden_layers or (layers + 1) * layer > PIECE_FLOPS
        assert layers == config.num_hidden_layers or len(part) == 1, "several views go through all layers together"


@pytest.mark.parametrize(
    ("name", "chunk", "layers"), [("450M", 352, 12), ("1.6B", 96, 6), ("3B", 32, 6)], ids=lambda value: str(value)
)
def test_pieces_of_published_shapes_are_those_of_the_docs(name, chunk, layers):
    """docs/performance.md: tokens of a chunk, layers of the tower that a tile of 512x512 goes through together."""
    assert prefill_chunk(TEXTS[name], 1, 0) == chunk
    assert layers_per_piece(TOWERS[name], [TILE]) == layers


# Any shape


def texts() -> st.SearchStrategy[Lfm2Config]:
    def made(heads: int, hidden: int, width: int, layers: int, attention: int) -> Lfm2Config:
        return text_of(hidden * heads, width, heads, layers, [*range(min(attention, layers))], num_key_value_heads=1)

    return st.builds(
        made,
        st.integers(1, 64),
        st.sampled_from([2, 64, 128]),
        st.integers(1, 20_000),
        st.integers(1, 60),
        st.integers(0, 60),
    )


def towers() -> st.SearchStrategy[Siglip2VisionConfig]:
    return st.builds(vision_of, st.integers(1, 4096), st.integers(1, 20_000), st.integers(1, 60), st.just(1))


SIDES = st.integers(1, 64)
GRIDS = st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(texts(), st.integers(1, 64), st.integers(0, 128_000))
def test_chunks_are_whole_granules_within_bounds(config, rows, past):
    chunk = prefill_chunk(config, rows, past)
    assert GRANULE <= chunk <= LONGEST_CHUNK and chunk % GRANULE == 0
    assert chunk == GRANULE or rows * chunk * token_flops(config, past + chunk) <= PIECE_FLOPS


@settings(max_examples=200, deadline=None)
@given(texts(), st.lists(st.integers(1, 64), min_size=2, max_size=6), st.integers(0, 128_000))
def test_chunks_do_not_grow_with_rows(config, rows, past):
    chunks = [prefill_chunk(config, count, past) for count in sorted(rows)]
    assert all(more >= fewer for more, fewer in pairwise(chunks))


@settings(max_examples=200, deadline=None)
@given(texts(), st.integers(1, 64), st.lists(st.integers(0, 128_000), min_size=2, max_size=6))
def test_chunks_do_not_grow_with_the_past(config, rows, pasts):
    chunks = [prefill_chunk(config, rows, past) for past in sorted(pasts)]
    assert all(more >= fewer for more, fewer in pairwise(chunks))


@settings(max_examples=200, deadline=None)
@given(towers(), GRIDS)
def test_vision_pieces_of_any_tower_are_within_bounds(config, grids):
    room = patches_per_pass(config, grids)
    assert 1 <= room <= PATCHES_PER_PASS
    for part in vision_passes(grids, room):
        chosen = [grids[index] for index in part]
        layers = layers_per_piece(config, chosen)
        counts = [height * width for height, width in chosen]
        flops = layers * sum(layer_flops(config, count, count) for count in counts)
        assert 1 <= layers <= config.num_hidden_layers
        assert flops <= PIECE_FLOPS or layers == len(part) == 1
    assert patches_per_pass(config, [*grids, (64, 64)]) <= room, "a larger view does not make room"
    assert patches_per_pass(config, []) >= room


@settings(max_examples=100, deadline=None)
@given(towers(), GRIDS, st.tuples(SIDES, SIDES))
def test_more_views_go_through_no_more_layers_together(config, grids, another):
    assert layers_per_piece(config, [*grids, another]) <= layers_per_piece(config, grids)
