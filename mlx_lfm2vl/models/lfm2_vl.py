"""The whole model: views of pictures through tower and projector, spliced into the text's embeddings, through LFM2.

Arguments and names are those of transformers' `Lfm2VlModel` and `Lfm2VlForConditionalGeneration`. Arrays may be NumPy
or MLX. Vision runs without padding: of each padded view only its `h*w` patches are kept, and views of all grids go
through the tower together.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..config import Lfm2VlConfig, ModelConfig
from ..errors import InputError
from .cache import Cache
from .layers import ACTIVATIONS, Context
from .lfm2 import Lfm2Model
from .logits import keep_positions, next_token_loss
from .outputs import ImageFeatures, Lfm2VlCausalLMOutputWithPast, Lfm2VlModelOutputWithPast
from .siglip2 import Grids, Siglip2VisionModel, pack_views, split_views, vision_passes

Array = mx.array | np.ndarray


def pixel_unshuffle(features: mx.array, grid: tuple[int, int], factor: int) -> mx.array:
    """(views, h*w, d) of grid (h, w) -> (views, (h/factor)*(w/factor), factor*factor*d).

    A token holds its patches row by row; the order is that of the reference's `Lfm2VlMultiModalProjector`.
    """
    views, _, channels = features.shape
    height, width = grid
    blocks = features.reshape(views, height // factor, factor, width // factor, factor * channels)
    return blocks.transpose(0, 1, 3, 2, 4).reshape(views, -1, factor * factor * channels)


class Lfm2VlMultiModalProjector(nn.Module):
    def __init__(self, config: Lfm2VlConfig):
        super().__init__()
        width = config.vision_config.hidden_size * config.downsample_factor**2
        self.factor = config.downsample_factor
        self.hidden_act = config.projector_hidden_act
        if config.projector_use_layernorm:
            self.layer_norm = nn.LayerNorm(width, eps=1e-5)  # torch.nn.LayerNorm's default, as in the reference
        self.linear_1 = nn.Linear(width, config.projector_hidden_size, bias=config.projector_bias)
        self.linear_2 = nn.Linear(
            config.projector_hidden_size, config.text_config.hidden_size, bias=config.projector_bias
        )

    def __call__(self, features: mx.array, grids: Grids) -> mx.array:
        """(views, h*w, vision hidden) -> (views, image tokens, text hidden), or both (1, all of them, ...) of several
        grids."""
        if len(set(grids)) == 1:
            x = pixel_unshuffle(features, grids[0], self.factor)
        else:
            ends = list(accumulate(height * width for height, width in grids))
            parts = zip(mx.split(features, ends[:-1], axis=1), grids, strict=True)
            x = mx.concatenate([pixel_unshuffle(part, grid, self.factor) for part, grid in parts], axis=1)
        if "layer_norm" in self:
            x = self.layer_norm(x)
        return self.linear_2(ACTIVATIONS[self.hidden_act](self.linear_1(x)))


class Lfm2VlModel(nn.Module):
    """Vision tower, projector and backbone, without the head."""

    vision_class: ClassVar[Callable[..., nn.Module]] = Siglip2VisionModel
    projector_class: ClassVar[Callable[..., nn.Module]] = Lfm2VlMultiModalProjector
    text_class: ClassVar[Callable[..., Lfm2Model]] = Lfm2Model
    view_arguments: ClassVar[tuple[str, ...]] = ("pixel_values", "spatial_shapes", "pixel_attention_mask")

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.vision_tower = self.vision_class(config.vision_config)
        self.multi_modal_projector = self.projector_class(config)
        self.language_model = self.text_class(config.text_config)

    def get_image_features(
        self, pixel_values: Array, spatial_shapes: Array, pixel_attention_mask: Array | None = None
    ) -> ImageFeatures:
        """Image tokens of every view.

        Args:
            pixel_values: (views, patches, channels*patch*patch), padded or not.
            spatial_shapes: (views, 2), the grid (h, w) of each.
            pixel_attention_mask: accepted as the reference has it and not needed; the grid says what is real.

        Raises:
            InputError: for grids that do not fit the arrays or the downsample factor.
        """
        pixels, grids = self.check_views(pixel_values, spatial_shapes)
        features: list[mx.array] = [pixels] * len(grids)
        tokens: list[mx.array] = [pixels] * len(grids)
        for part in vision_passes(grids):
            chosen = [grids[index] for index in part]
            in_order = part == list(range(len(grids)))
            views = pixels if in_order else mx.stack([pixels[index] for index in part])
            hidden = self.vision_tower(pack_views(views, chosen), chosen)
            projected = self.multi_modal_projector(hidden, chosen)
            for out, array in ((features, hidden), (tokens, projected)):
                for index, view in zip(part, split_views(array, chosen), strict=True):
                    out[index] = view
        return ImageFeatures(features, tokens)

    def views_of(self, arrays: dict[str, Any], input_ids: Array | None = None) -> tuple[Any, Any]:
        """Takes the pictures from the arguments of a call: padded views (views, patches, width) and their grids (views,
        2), None twice without any. Raises `InputError`."""
        pixels, shapes, _ = (arrays.pop(name, None) for name in self.view_arguments)
        return pixels, shapes

    def check_views(self, pixel_values: Array, spatial_shapes: Array) -> tuple[mx.array, list[tuple[int, int]]]:
        """The views as an array, and their grids. Raises `InputError`, as `get_image_features`."""
        vision, factor = self.config.vision_config, self.config.downsample_factor
        pixels = mx.array(pixel_values)
        shapes = np.array(spatial_shapes)
        width = vision.patch_width
        if pixels.ndim != 3 or pixels.shape[2] != width:
            raise InputError(f"pixel_values has shape {tuple(pixels.shape)}, expected (views, patches, {width})")
        if shapes.shape != (pixels.shape[0], 2):
            raise InputError(f"spatial_shapes has shape {shapes.shape}, expected ({pixels.shape[0]}, 2)")
        grids = [(int(h), int(w)) for h, w in shapes]
        for height, width in grids:
            if height < 1 or width < 1 or height * width > pixels.shape[1]:
                raise InputError(f"spatial_shapes holds {height}x{width}, but a view has {pixels.shape[1]} patches")
            if height % factor or width % factor:
                raise InputError(f"spatial_shapes holds {height}x{width}; each side must be a multiple of {factor}")
        return pixels, grids

    def embed(
        self, input_ids: Array | None, image_features: mx.array | None = None, inputs_embeds: mx.array | None = None
    ) -> mx.array:
        """Embeddings (B, L, hidden) of the tokens, with `image_features` (n, hidden) in the n image placeholders.

        Placeholders are found by id or, where only `inputs_embeds` are given, by their embedding. Raises `InputError`
        if the counts differ or an id lies outside the vocabulary.
        """
        placeholders = self.config.placeholders
        if input_ids is not None:
            ids = np.array(input_ids)
            vocabulary = self.config.text_config.vocab_size
            if ids.ndim != 2 or ids.shape[1] == 0:
                raise InputError(f"input_ids has shape {ids.shape}, expected (batch, length) with at least one token")
            if ids.min() < 0 or ids.max() >= vocabulary:
                bad = ids[(ids < 0) | (ids >= vocabulary)][0]
                raise InputError(f"input_ids holds {bad}; the model's vocabulary has ids 0 to {vocabulary - 1}")
            embeds = self.language_model.embed(mx.array(ids.astype(np.int32)))
            at = np.isin(ids, placeholders) if image_features is not None else None
        elif inputs_embeds is not None:
            embeds = inputs_embeds
            hidden = self.config.text_config.hidden_size
            if embeds.ndim != 3 or not embeds.size or embeds.shape[2] != hidden:
                raise InputError(f"inputs_embeds has shape {tuple(embeds.shape)}, expected (batch, length, {hidden})")
            at = None
            if image_features is not None:
                tokens = self.language_model.embed(mx.array([placeholders]))[0]
                at = np.array((embeds[:, :, None] == tokens).all(axis=-1).any(axis=-1))
        else:
            raise InputError("give exactly one of input_ids and inputs_embeds")
        if image_features is None or at is None:
            return embeds
        where = np.flatnonzero(at)
        if len(where) != image_features.shape[0]:
            raise InputError(
                f"Image features and image tokens do not match: {len(where)} tokens in the text, "
                f"{image_features.shape[0]} features from the pictures"
            )
        flat = embeds.reshape(-1, embeds.shape[-1])
        flat[mx.array(where)] = image_features.astype(embeds.dtype)
        return flat.reshape(embeds.shape)

    def fuse(self) -> None:
        """Lets a GPU start fewer kernels for each token and picture. For weights that are loaded and stay; one that is
        replaced later counts."""
        self.vision_tower.fuse()
        self.fuse_text()

    def fuse_text(self) -> None:
        """The same, of the backbone."""
        for layer in self.language_model.layers:
            if "conv" in layer:
                layer.conv.conv.fuse()

    def __call__(
        self,
        input_ids: Array | None = None,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        pixel_values: Array | None = None,
        spatial_shapes: Array | None = None,
        pixel_attention_mask: Array | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Array | None = None,
        use_cache: bool | None = None,
        cache_position: Array | None = None,
        image_outputs: ImageFeatures | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        return_dict: bool = True,
    ) -> Lfm2VlModelOutputWithPast | tuple[Any, ...]:
        """`input_ids` (B, L) or `inputs_embeds` (B, L, hidden); the pictures' arrays as the image processor makes them.

        `image_outputs` of `get_image_features` stand in for `pixel_values`. `cache_position` (L,) gives the positions
        where `position_ids` does not. The cache is made if `use_cache` is not false, and continued if
        `past_key_values` is given. Raises `InputError`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("give exactly one of input_ids and inputs_embeds")
        images, features = None, image_outputs
        if features is None and pixel_values is not None:
            if spatial_shapes is None:
                raise InputError("pixel_values is given without spatial_shapes")
            features = self.get_image_features(pixel_values, spatial_shapes, pixel_attention_mask)
        if features is not None:
            tokens = features.pooler_output
            images = tokens[0] if len(tokens) == 1 else mx.concatenate(tokens)
        embeds = self.embed(input_ids, images, None if inputs_embeds is None else mx.array(inputs_embeds))
        cache = past_key_values
        if cache is None and use_cache is not False:
            cache = Cache(self.config.text_config)
        positions = position_ids if position_ids is not None else cache_position
        if cache is not None and not isinstance(cache, Cache):
            raise InputError(f"past_key_values is {type(cache).__name__}, expected a Cache of an earlier output")
        if cache is not None and cache.batch not in (None, embeds.shape[0]):
            raise InputError(f"past_key_values holds {cache.batch} rows, the new tokens have {embeds.shape[0]}")
        past = cache.offset if cache is not None else 0
        context = Context.of(embeds, past, attention_mask, positions)
        states: list[mx.array] | None = [] if output_hidden_states else None
        weights: list[mx.array] | None = [] if output_attentions else None
        out = Lfm2VlModelOutputWithPast(
            last_hidden_state=self.language_model(embeds, context, cache, states, weights),
            past_key_values=cache,
            hidden_states=None if states is None else tuple(states),
            attentions=None if weights is None else tuple(weights),
            image_hidden_states=images,
        )
        out.image_outputs = features
        return out if return_dict else out.to_tuple()


class Lfm2VlForConditionalGeneration(nn.Module):
    """The model with its language-modelling head, tied to the embeddings or of its own."""

    model_class: ClassVar[type[Lfm2VlModel]] = Lfm2VlModel
    group: mx.distributed.Group | None = None  # of ranks that share the model, if several do
    lead: Any = None  # a Lead, in rank 0 of them
    draft_prompts: Any = None  # a PromptCache of earlier prompts, where it proposes tokens to another model
    kv_bits: int | None = None  # of the keys and values of answers, None where they are not quantised

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model = self.model_class(config)
        if not config.tie_word_embeddings:
            # an item, as compat's property of that name gives a tied head too
            self["lm_head"] = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)

    def get_image_features(
        self, pixel_values: Array, spatial_shapes: Array, pixel_attention_mask: Array | None = None
    ) -> ImageFeatures:
        """As `Lfm2VlModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, spatial_shapes, pixel_attention_mask)

    def fuse(self) -> None:
        """As `Lfm2VlModel.fuse`."""
        self.model.fuse()

    def make_cache(self) -> Cache:
        """The states of an answer, none yet."""
        return Cache(self.config.text_config, self.kv_bits)

    def logits(self, hidden_states: mx.array) -> mx.array:
        """(..., hidden) -> (..., vocabulary)."""
        if "lm_head" in self:
            return self["lm_head"](hidden_states)
        return self.model.language_model.embed_tokens.as_linear(hidden_states)

    def __call__(
        self,
        input_ids: Array | None = None,
        pixel_values: Array | None = None,
        spatial_shapes: Array | None = None,
        pixel_attention_mask: Array | None = None,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Array | None = None,
        labels: Array | None = None,
        use_cache: bool | None = None,
        cache_position: Array | None = None,
        logits_to_keep: int | Array = 0,
        image_outputs: ImageFeatures | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        return_dict: bool = True,
    ) -> Lfm2VlCausalLMOutputWithPast | tuple[Any, ...]:
        """As `Lfm2VlModel.__call__`, and logits.

        `logits_to_keep`: the last n positions (0: all); or positions (n,), or (B, n) of each row, or (B, L) bool, which
        gives (number of true ones, vocabulary). `labels` (B, L): the loss is the mean cross-entropy of each next token,
        in float32, where the label is not -100; it needs all logits.
        """
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            pixel_values=pixel_values,
            spatial_shapes=spatial_shapes,
            pixel_attention_mask=pixel_attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            cache_position=cache_position,
            image_outputs=image_outputs,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        assert isinstance(out, Lfm2VlModelOutputWithPast)
        logits = self.logits(keep_positions(out.last_hidden_state, logits_to_keep))
        result = Lfm2VlCausalLMOutputWithPast(
            loss=None if labels is None else next_token_loss(logits, mx.array(labels)),
            logits=logits,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
            image_hidden_states=out.image_hidden_states,
        )
        result.image_outputs = out.image_outputs
        return result if return_dict else result.to_tuple()
