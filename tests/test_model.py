"""Every stage of the model against the reference's frozen numbers, and the invariants of its arguments."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import CHECKPOINTS, GOLDEN, cache_by_backend, case_ids
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_lfm2vl.errors import InputError
from mlx_lfm2vl.models.cache import Cache
from mlx_lfm2vl.models.siglip2 import resize_table
from mlx_lfm2vl.weights.load import load_model

LOGITS = 2e-5  # relative to the largest logit of the case
STAGES = 5e-5  # hidden states are sums of large terms that cancel later


pytestmark = pytest.mark.backends("mlx", "numpy")


@cache_by_backend
def model_of(checkpoint: str) -> Any:  # an output's fields are known at run time only
    return load_model(GOLDEN / checkpoint)


def assert_close(ours, reference: np.ndarray, tolerance: float, what: str) -> None:
    ours = np.array(ours)
    assert ours.shape == reference.shape, what
    error = np.abs(ours - reference).max() / np.abs(reference).max()
    assert error < tolerance, f"{what}: relative error {error:.1e}"


def patches_of(case) -> list[np.ndarray]:
    return [
        pixels[: h * w]
        for pixels, (h, w) in zip(case.pixel_values, case.arrays["spatial_shapes"].tolist(), strict=True)
    ]


@pytest.mark.sampled(36)
@pytest.mark.parametrize("case_id", case_ids(having="pictures"))
def test_vision_stages(case_id, golden):
    case = golden(case_id)
    model = model_of(case.checkpoint).model
    tower = model.vision_tower
    grids = [tuple(grid) for grid in case.arrays["spatial_shapes"].tolist()]
    positions, states, outputs = [], [], []
    for patches, grid in zip(patches_of(case), grids, strict=True):
        table = tower.embeddings.position_embedding.weight
        positions.append(np.array(resize_table(table, tower.config.position_table_side, *grid)))
        layers: list[mx.array] = []
        outputs.append(np.array(tower(mx.array(patches)[None], [grid], layers)[0]))
        states.append(np.stack([np.array(layer[0]) for layer in layers]))
    rows = case.arrays["patch_rows"]
    assert_close(np.concatenate(positions)[rows], case.arrays["positions"], 3e-6, "positions")
    for index, (ours, reference) in enumerate(
        zip(np.concatenate(states, axis=1)[:, rows], case.arrays["vision_hidden_states"], strict=True)
    ):
        assert_close(ours, reference, STAGES, f"vision layer {index}")
    assert_close(np.concatenate(outputs)[rows], case.arrays["vision_output"], STAGES, "vision output")

    features = model.get_image_features(case.pixel_values, case.arrays["spatial_shapes"])
    tokens = np.concatenate([np.array(view) for view in features.pooler_output])
    assert_close(tokens[case.arrays["feature_rows"]], case.arrays["image_features"], STAGES, "projector")


def test_views_of_all_sizes_together_are_what_each_is_alone(monkeypatch):
    model = model_of("gen2")
    grids = [(8, 8), (4, 16), (2, 2), (8, 8), (6, 4), (16, 4), (40, 60), (44, 40)]
    width = 3 * model.config.vision_config.patch_size**2
    pixels = np.random.default_rng(0).normal(size=(len(grids), 2400, width)).astype(np.float32)
    passes = []
    tower = type(model.model.vision_tower).__call__

    def encoding(self, patches: mx.array, *given):
        passes.append(patches.shape)
        return tower(self, patches, *given)

    monkeypatch.setattr(type(model.model.vision_tower), "__call__", encoding)
    together = model.get_image_features(pixels, np.array(grids))
    assert passes == [(1, 2 * 64 + 64 + 4 + 24 + 64 + 2400, width), (1, 1760, width)]
    for index, grid in enumerate(grids):
        alone = model.get_image_features(pixels[index : index + 1], np.array([grid]))
        for ours, wanted in zip(
            (together.pooler_output[index], together.last_hidden_state[index]),
            (alone.pooler_output[0], alone.last_hidden_state[0]),
            strict=True,
        ):
            assert ours.shape == wanted.shape
            assert_close(ours, np.array(wanted), 2e-5, f"view {index}")


@given(st.lists(st.sampled_from([(2, 2), (4, 2), (2, 4), (6, 4)]), min_size=1, max_size=6))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_views_keep_their_order_whatever_their_grids(backend, grids):
    """Views of one grid run beside each other, also where others stand between them."""
    model = model_of("gen2")
    width = 3 * model.config.vision_config.patch_size**2
    pixels = np.random.default_rng(1).normal(size=(len(grids), 24, width)).astype(np.float32)
    together = model.get_image_features(pixels, np.array(grids)).pooler_output
    for index, grid in enumerate(grids):
        (alone,) = model.get_image_features(pixels[index : index + 1], np.array([grid])).pooler_output
        assert_close(together[index], np.array(alone), 2e-5, f"view {index}")


@pytest.mark.sampled(40)
@pytest.mark.parametrize("case_id", case_ids())
def test_language_stages_logits_and_loss(case_id, golden):
    case = golden(case_id)
    model = model_of(case.checkpoint)
    out = model(**case.inputs, labels=case.arrays["labels"], output_hidden_states=True)
    prompts, positions = case.arrays["token_rows"].T
    for index, (ours, reference) in enumerate(zip(out.hidden_states, case.arrays["hidden_states"], strict=True)):
        assert_close(np.array(ours)[prompts, positions], reference, STAGES, f"layer {index}")
    logits = np.array(out.logits)[prompts, positions]
    assert_close(logits, case.arrays["logits"], LOGITS, "logits")
    assert_close(out.loss, case.arrays["loss"], 1e-5, "loss")


@pytest.mark.parametrize("case_id", case_ids())
def test_attentions(case_id, golden):
    case = golden(case_id)
    if "attentions" not in case.arrays:
        assert case.arrays["input_ids"].shape[1] > 48
        return
    out = model_of(case.checkpoint)(**case.inputs, output_attentions=True)
    real = case.arrays["attention_mask"].astype(bool)
    for ours, reference in zip(out.attentions, case.arrays["attentions"], strict=True):
        for row, keep in enumerate(real):
            assert_close(np.array(ours)[row][:, keep], reference[row][:, keep], 1e-5, "attention weights")
    assert_close(
        np.array(out.logits)[tuple(case.arrays["token_rows"].T)],
        case.arrays["logits"],
        LOGITS,
        "logits beside attentions",
    )


@pytest.mark.parametrize("case_id", ["gen2-tiled", "gen25-landscape", "untied-text"])
def test_cached_steps_equal_the_whole(case_id, golden):
    case = golden(case_id)
    model = model_of(case.checkpoint)
    whole = model(**case.inputs, use_cache=False)
    assert whole.past_key_values is None
    images = None
    if case.has_pictures:
        views = model.get_image_features(case.pixel_values, case.arrays["spatial_shapes"]).pooler_output
        images = mx.concatenate(views)
    embeds = model.model.embed(case.inputs["input_ids"], images)
    cache, pieces, at = Cache(model.config.text_config), [], 0
    for length in [1, 2, 40, 7, 1, 1, embeds.shape[1]]:
        piece = embeds[:, at : at + length]
        if piece.shape[1]:
            pieces.append(model(inputs_embeds=piece, past_key_values=cache).logits)
        at += length
    assert cache.get_seq_length() == embeds.shape[1]
    assert_close(mx.concatenate(pieces, axis=1), np.array(whole.logits), LOGITS, "in pieces")


def test_rewinding_to_a_checkpoint_equals_never_having_gone_on(golden):
    case = golden("gen2-turns")
    model = model_of(case.checkpoint)
    ids = case.inputs["input_ids"]
    cache = model(**case.inputs).past_key_values
    point = cache.checkpoint()
    first = model(ids[:, 1:20], past_key_values=cache).logits
    model(ids[:, :300], past_key_values=cache)
    cache.rewind(point)
    assert cache.get_seq_length() == ids.shape[1]
    np.testing.assert_array_equal(np.array(model(ids[:, 1:20], past_key_values=cache).logits), np.array(first))


@pytest.mark.parametrize("case_id", case_ids(having="padding"))
def test_a_padded_batch_equals_its_single_prompts(case_id, golden):
    case = golden(case_id)
    model = model_of(case.checkpoint)
    logits = np.array(model(**case.inputs).logits)
    view = 0
    for row, mask in enumerate(case.arrays["attention_mask"].astype(bool)):
        ids = case.arrays["input_ids"][row][mask][None]
        inputs = {"input_ids": ids}
        wanted = int((ids == model.config.image_token_id).sum())
        views = []
        while wanted > 0:
            views.append(view)
            wanted -= int(np.prod(case.arrays["spatial_shapes"][view])) // 4
            view += 1
        if views:
            inputs["pixel_values"] = case.pixel_values[views]
            inputs["spatial_shapes"] = case.arrays["spatial_shapes"][views]
        assert_close(model(**inputs).logits[0], logits[row][mask], LOGITS, f"row {row}")


def test_positions_may_be_given(golden):
    case = golden("gen2-batch-left")
    model = model_of(case.checkpoint)
    mask = case.arrays["attention_mask"]
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    logits = np.array(model(**case.inputs, position_ids=positions).logits)
    token = tuple(case.arrays["token_rows"].T)
    assert_close(logits[token], case.arrays["logits"], LOGITS, "rotary positions are relative")
    shifted = model(**case.inputs, position_ids=positions * 2).logits
    assert np.abs(np.array(shifted)[token] - case.arrays["logits"]).max() > 0.01
    counted = np.arange(mask.shape[1])
    given = np.array(model(**case.inputs, cache_position=counted).logits)
    assert_close(given[token], case.arrays["logits"], LOGITS, "cache_position")


def test_logits_to_keep(golden):
    case = golden("gen2-batch-left")
    model = model_of(case.checkpoint)
    whole = np.array(model(**case.inputs).logits)
    length = whole.shape[1]
    wanted = {
        "last": (1, whole[:, -1:]),
        "last three": (3, whole[:, -3:]),
        "positions": (np.array([5, 2]), whole[:, [5, 2]]),
        "positions of each row": (np.array([[length - 1, 3], [length - 2, 4]]), whole[[[0], [1]], [[-1, 3], [-2, 4]]]),
    }
    for name, (keep, expected) in wanted.items():
        assert_close(model(**case.inputs, logits_to_keep=keep).logits, expected, 1e-6, name)
    chosen = case.arrays["attention_mask"].astype(bool)
    assert_close(model(**case.inputs, logits_to_keep=chosen).logits, whole[chosen], 1e-6, "mask")
    for bad in (-1, np.zeros((1, 1, 1), int)):
        with pytest.raises(InputError, match="logits_to_keep"):
            model(**case.inputs, logits_to_keep=bad)


def test_embeddings_may_be_given_instead_of_ids(golden):
    case = golden("gen2-landscape")
    model = model_of(case.checkpoint)
    expected = np.array(model(**case.inputs).logits)
    inputs = dict(case.inputs)
    embeds = model.model.embed(inputs.pop("input_ids"))
    assert_close(model(inputs_embeds=embeds, **inputs).logits, expected, 1e-6, "placeholders found by embedding")


def test_outputs_as_the_reference_has_them(golden):
    case = golden("gen2-landscape")
    model = model_of(case.checkpoint)
    out = model(**case.inputs)
    assert out.loss is None and out.hidden_states is None and out.attentions is None
    assert out[0] is out.logits and out["logits"] is out.logits
    assert "logits" in out and "loss" not in out
    assert list(out) == out.keys() == ["logits", "past_key_values", "image_hidden_states"]
    with pytest.raises(KeyError):
        out["loss"]
    assert out.image_hidden_states.shape == (int(np.prod(case.arrays["spatial_shapes"])) // 4, 64)
    as_tuple = model(**case.inputs, return_dict=False)
    assert len(as_tuple) == 3 and isinstance(as_tuple[1], Cache)
    np.testing.assert_array_equal(np.array(as_tuple[0]), np.array(out.logits))
    body = model.model(**case.inputs)
    np.testing.assert_array_equal(np.array(model.logits(body.last_hidden_state)), np.array(out.logits))
    text_only = model(case.inputs["input_ids"][:, -5:], use_cache=False)
    assert text_only.to_tuple()[0] is text_only.logits and len(text_only.to_tuple()) == 1


def test_mlx_arrays_are_taken_like_numpy(golden):
    case = golden("gen25-small")
    model = model_of(case.checkpoint)
    ours = model(**{name: mx.array(value) for name, value in case.inputs.items()}).logits
    np.testing.assert_array_equal(np.array(ours), np.array(model(**case.inputs).logits))


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_the_tied_head_is_the_embedding_and_the_untied_is_not(checkpoint):
    model = model_of(checkpoint)
    hidden = mx.ones((1, model.config.text_config.hidden_size))
    tied = model.model.language_model.embed_tokens.as_linear(hidden)
    assert mx.allclose(model.logits(hidden), tied, atol=1e-4).item() == (checkpoint != "untied")


def test_arrays_that_do_not_fit_are_refused_by_name(golden):
    case = golden("gen2-landscape")
    model = model_of(case.checkpoint)
    good = case.inputs
    ids = good["input_ids"]

    def refused(match: str, **changed) -> None:
        with pytest.raises(InputError, match=match):
            model(**{**good, **changed})

    refused("input_ids and inputs_embeds", input_ids=None)
    refused("49 tokens in the text, 60 features from the pictures", input_ids=ids[:, :-30], labels=None)
    refused("input_ids holds 832; .* 0 to 831", input_ids=np.full_like(ids, 832))
    refused("input_ids holds -1", input_ids=np.full_like(ids, -1))
    refused("input_ids has shape", input_ids=ids[0])
    refused("pixel_values has shape", pixel_values=good["pixel_values"][..., :5])
    refused("without spatial_shapes", spatial_shapes=None)
    refused("spatial_shapes has shape", spatial_shapes=np.array([[2, 2], [2, 2]]))
    refused("multiple of 2", spatial_shapes=np.array([[3, 4]]))
    refused("a view has 256 patches", spatial_shapes=np.array([[200, 200]]))
    refused("attention_mask has shape", attention_mask=np.ones((1, 3)))
    refused("position_ids has shape", position_ids=np.arange(3))
    refused("labels has shape", labels=np.zeros((1, 3), int))
    refused("labels holds 832, expected ids 0 to 831, or -100", labels=np.full_like(ids, 832))
    refused("labels holds -1", labels=np.full_like(ids, -1))
    refused("logits_to_keep asks for a position outside", logits_to_keep=np.array([10**7]))
    refused("logits_to_keep asks for a position outside", logits_to_keep=np.array([[-ids.shape[1] - 1]]))
    refused(r"attention_mask has shape \(3, 86\), expected \(1, 86\)", attention_mask=np.ones((3, 86)))
    refused("past_key_values is list", past_key_values=[1])
    used = model(np.repeat(ids[:, :5], 2, axis=0)).past_key_values
    refused("past_key_values holds 2 rows, the new tokens have 1", past_key_values=used)
    with pytest.raises(InputError, match="inputs_embeds has shape"):
        model(inputs_embeds=np.zeros((1, 3, 5), np.float32))
