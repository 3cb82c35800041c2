"""The attention weights of an answer's tokens, computed in one pass over prompt and answer.

Decoding keeps its fused kernel, which never has the weights. Here the prompt runs as it does for an answer, and the
answer's tokens behind it with the weights: softmax(q k^T / sqrt(head_dim)) in each full-attention layer, what the
reference returns for `output_attentions` with its eager attention. The softmax is computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import mlx.core as mx
import numpy as np

from ..backends.thread_state import computing
from ..generation.chunked_prefill import Prompt, encode_views_in_pieces, prefill_in_pieces
from ..generation.request import EncodedPrompt, take_views
from ..generation.vision_cache import VisionCache
from ..generation.watch import Stop, check, whole
from ..models.cache import Cache
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration

TOKENS_PER_PASS = 32  # whose weights over the whole prompt are held at a time


@computing
def answer_attentions(
    model: Lfm2VlForConditionalGeneration,
    prompt: EncodedPrompt,
    tokens: Sequence[int],
    vision_cache: VisionCache,
    *,
    stop: Stop | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[np.ndarray]:
    """The attention with which each token of an answer was chosen, over the image tokens.

    Args:
        model: the model.
        prompt: the question, with pictures, whose patches are made again.
        tokens: of the answer, at least one. The weights of a token are those of the position before it, which chooses
            it: the first token's are those of the prompt's last position.
        vision_cache: where the encoded pictures are found.
        stop: asked between pieces of the work.
        progress: told of the tokens of the prompt that have run.

    Returns:
        For each picture (attention layers, heads, tokens, image tokens of the picture) float32. The weights of a token
        sum to 1 over all positions, of which the pictures' are a part.

    Raises:
        InputError, OutOfMemoryError, NotFiniteError
        Cancelled: `stop` said so.
    """
    pixels, shapes = take_views(prompt.pictures)
    keys = [key for picture in prompt.pictures for key in picture.keys]
    images = whole(encode_views_in_pieces(model, pixels, shapes, vision_cache, keys), stop)
    cache = model.make_cache()
    asked = Prompt(prompt.ids[None, :-1], images=images, answer=len(tokens))
    whole(prefill_in_pieces(model, asked, cache), stop, progress)
    image = np.isin(prompt.ids, model.config.placeholders)
    places = [start + np.flatnonzero(image[start:end]) for start, end in prompt.places]
    asking = np.concatenate([prompt.ids[-1:], np.asarray(tokens[:-1], prompt.ids.dtype)])
    passes = list(_passes(model, asking, cache, np.concatenate(places), stop))
    weights = np.concatenate(passes, axis=2)
    ends = np.cumsum([len(each) for each in places])[:-1]
    return np.split(weights, ends, axis=-1)


def _passes(
    model: Lfm2VlForConditionalGeneration, asking: np.ndarray, cache: Cache, places: np.ndarray, stop: Stop | None
) -> Iterator[np.ndarray]:
    """(layers, heads, tokens of the pass, places) float32 each. Raises `Cancelled`."""
    text = model.model.language_model
    columns = mx.array(places)
    for start in range(0, len(asking), TOKENS_PER_PASS):
        check(stop)
        weights: list[mx.array] = []
        embeds = text.embed(mx.array(asking[None, start : start + TOKENS_PER_PASS]))
        text(embeds, cache=cache, attentions=weights)
        chosen = mx.stack([_of_places(each[0], columns, cache.offset) for each in weights]).astype(mx.float32)
        yield np.array(chosen)


def _of_places(weights: mx.array, places: mx.array, length: int) -> mx.array:
    """The weights (heads, tokens, places) at places among `length` tokens, of (heads, tokens, keys) over the last keys;
    what a sliding window has left behind weighs nothing."""
    columns = places - (length - weights.shape[-1])
    return mx.where(columns >= 0, weights[..., mx.maximum(columns, 0)], 0)
