"""Parts that the networks share: the places of a call's tokens, activations by name, and products that a GPU starts
fewer kernels for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..errors import InputError


@dataclass(frozen=True)
class Context:
    """The inputs that all layers of one call share.

    `length`: tokens of the call. `offset`: rotary position of the first one, one number or one a row (B,). `positions`:
    (B or 1, L) instead, where they do not simply count up. `attention_mask`: which keys each query sees, (B, 1, L, S)
    bool, or "causal", or None where the one query sees all. `conv_mask`: (B, L, 1), zero at padding.
    """

    length: int
    offset: int | mx.array = 0
    positions: mx.array | None = None
    attention_mask: mx.array | str | None = None
    conv_mask: mx.array | None = None

    @classmethod
    def following(cls, length: int, past: int = 0, padding: np.ndarray | None = None) -> Context:
        """`length` tokens behind `past` others. The first of these are `padding` (B,), or none; padding shifts a row's
        positions, so that a row of a batch sees just what it would see alone."""
        if padding is None:
            return cls(length, past, attention_mask="causal" if length > 1 else None)
        return cls.among(np.arange(past + length)[None, :] >= padding[:, None], length)

    @classmethod
    def among(cls, real: np.ndarray, length: int) -> Context:
        """The last `length` tokens of rows of which only the columns in `real` (B, past + length) bool count. A row's
        last column is real."""
        mask, conv_mask = padding_masks(real, length)
        offset = mx.array((real.sum(axis=1) - length).astype(np.int32))
        return cls(length, offset, attention_mask=mask, conv_mask=conv_mask)

    @classmethod
    def of(
        cls,
        embeds: mx.array,
        past: int,
        attention_mask: mx.array | np.ndarray | None = None,
        position_ids: mx.array | np.ndarray | None = None,
    ) -> Context:
        """Tokens behind others, with padding or positions of their own.

        Args:
            embeds: the new tokens, (B, L, hidden).
            past: tokens of each row before them.
            attention_mask: (B, past + L), 1 at real tokens, padding on either side.
            position_ids: (B or 1, L), or (L,).

        Raises:
            InputError: for another shape.
        """
        batch, length, _ = embeds.shape
        made = cls.following(length, past)
        if attention_mask is not None:
            real = np.array(attention_mask)
            if real.shape != (batch, past + length):
                raise InputError(f"attention_mask has shape {real.shape}, expected ({batch}, {past + length})")
            if not real.all():
                mask, conv_mask = padding_masks(real.astype(bool), length)
                made = replace(made, attention_mask=mask, conv_mask=conv_mask)
        if position_ids is None:
            return made
        positions = mx.array(position_ids)
        positions = positions[None] if positions.ndim == 1 else positions
        if positions.ndim != 2 or positions.shape[0] not in (1, batch) or positions.shape[1] != length:
            raise InputError(f"position_ids has shape {tuple(positions.shape)}, expected ({batch}, {length})")
        return replace(made, positions=positions)

    def last(self, length: int) -> Context:
        """The context of the last `length` tokens."""
        mask = self.attention_mask
        return replace(
            self,
            length=length,
            offset=self.offset + (self.length - length),
            positions=None if self.positions is None else self.positions[:, -length:],
            attention_mask=mask[:, :, -length:] if isinstance(mask, mx.array) else mask,
            conv_mask=None if self.conv_mask is None else self.conv_mask[:, -length:],
        )

    def window(self, length: int, past: int) -> Context:
        """The context of layers that see `length` tokens, the asking one included, and keep fewer than that of the
        `past` tokens before the call."""
        kept = min(past, length - 1)
        mask = self.attention_mask
        if isinstance(mask, mx.array):
            mask = mask[..., -(kept + self.length) :]
            if isinstance(self.offset, mx.array):  # of a row's own tokens the last are kept, without gaps
                real = mx.arange(kept) >= (kept - self.offset)[:, None]
                seen = mx.broadcast_to(real[:, None, None], (*mask.shape[:3], kept))
                mask = mx.concatenate([seen, mask[..., kept:]], axis=-1)
        if kept + self.length > length:  # one query sees no more than is kept
            distance = np.arange(kept, kept + self.length)[:, None] - np.arange(kept + self.length)[None, :]
            seen = mx.array(((distance >= 0) & (distance < length))[None, None])
            mask = seen & mask if isinstance(mask, mx.array) else seen
        return replace(self, attention_mask=mask)


def rope_frequencies(head_dim: int, theta: float, rotated: float = 1.0) -> mx.array:
    """Wavelengths over 2 pi, (head_dim / 2,) float32: position p turns pair i by the angle p / frequency i. Only the
    fraction `rotated` of the pairs turns; of the others the wavelength is infinite. Powers are rounded once, as torch's
    are: a position multiplies their error."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = (theta ** exponents.astype(np.float64)).astype(np.float32)
    frequencies[int(rotated * head_dim // 2) :] = np.inf
    return mx.array(frequencies)


def rotate(
    x: mx.array,
    frequencies: mx.array,
    offset: int | mx.array,
    positions: mx.array | None = None,
    traditional: bool = False,
) -> mx.array:
    """(B, heads, L, head_dim) turned for the positions from `offset` on, one number or one a row (B,); or for arbitrary
    ones, (B or 1, L)."""
    if positions is None:
        return mx.fast.rope(
            x, x.shape[-1], traditional=traditional, base=None, scale=1.0, offset=offset, freqs=frequencies
        )
    angles = positions.astype(mx.float32)[:, None, :, None] * (1 / frequencies)
    angles = mx.concatenate([angles, angles], axis=-1)
    cos, sin = mx.cos(angles).astype(x.dtype), mx.sin(angles).astype(x.dtype)
    half = x.shape[-1] // 2
    turned = mx.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    return x * cos + turned * sin


def seen_scores(scores: mx.array, mask: mx.array | str | None) -> mx.array:
    """Scores of attention (..., L, S), minus infinity where a mask as that of `Context` lets a query not see a key."""
    if isinstance(mask, str):
        length, total = scores.shape[-2:]
        mask = mx.arange(total)[None, :] <= mx.arange(total - length, total)[:, None]
    return scores if mask is None else mx.where(mask, scores, mx.array(-mx.inf, scores.dtype))


def padding_masks(real: np.ndarray, length: int) -> tuple[mx.array, mx.array | None]:
    """Masks for padded prompts.

    Args:
        real: (B, past + L) bool, true at real tokens.
        length: L, the number of new tokens.

    Returns:
        The attention mask (B, 1, L, past + L) and the mask (B, L, 1) of the convolutions, None if none of the new
        tokens is padding. A padding token sees itself, so that no row of the softmax is empty; nothing real sees it.
    """
    total = real.shape[1]
    queries = np.arange(total - length, total)[:, None]
    keys = np.arange(total)[None, :]
    mask = (real[:, None, None, :] & (keys <= queries)) | (keys == queries)
    new = real[:, total - length :, None]
    return mx.array(mask), None if new.all() else mx.array(new)


@partial(mx.compile, shapeless=True)
def gelu_tanh(x: mx.array) -> mx.array:
    """GELU approximated by tanh, in one kernel: x / 2 (1 + tanh u) = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715
    x^3)."""
    return x * mx.sigmoid(x * (1.5957691216057308 + 0.07135481282687 * (x * x)))


@partial(mx.compile, shapeless=True)
def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """`silu(gate) * up` in one kernel, in float32."""
    wide = gate.astype(mx.float32)
    return (wide * mx.sigmoid(wide) * up.astype(mx.float32)).astype(gate.dtype)


# By the names that configurations use, those of transformers' `ACT2FN`.
ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "gelu": nn.gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": nn.relu,
    "silu": nn.silu,
}


def add_linear(residual: mx.array, x: mx.array, layer: nn.Module) -> mx.array:
    """`residual + layer(x)`, in one kernel if the layer is dense and has no bias."""
    if type(layer) is nn.Linear and "bias" not in layer:
        return mx.addmm(residual, x, layer.weight.T)
    return residual + layer(x)


class FusedQKV:
    """Dense linear layers of one input, with biases, as one product.

    The layers' weights become views of one array, so nothing is held twice. It is valid for these very arrays: once a
    layer's weight or bias is replaced (by `update`, a quantisation, a cast), the layers are called. Writing into one in
    place, as in `layer.weight[0] = 0`, is not seen; replace it instead. A copy of a module has none.
    """

    def __init__(self, layers: Sequence[nn.Linear]):
        weight = mx.concatenate([layer.weight for layer in layers])
        bias = mx.concatenate([layer.bias for layer in layers])
        ends = [sum(len(layer.bias) for layer in layers[: n + 1]) for n in range(len(layers) - 1)]
        mx.eval(weight, bias)
        for layer, own, own_bias in zip(layers, mx.split(weight, ends), mx.split(bias, ends), strict=True):
            layer.weight, layer.bias = own, own_bias
        self._weight, self._bias, self._ends = weight, bias, ends
        self._parts = [(layer.weight, layer.bias) for layer in layers]
        mx.eval(self._parts)

    @staticmethod
    def possible(layers: Sequence[nn.Module]) -> bool:
        """Whether the layers are dense ones of one type, with biases."""
        dense = all(type(layer) is nn.Linear and "bias" in layer for layer in layers)
        return dense and len({(layer.weight.dtype, layer.weight.shape[1]) for layer in layers}) == 1

    def __call__(self, x: mx.array, layers: Sequence[nn.Module]) -> list[mx.array]:
        """(..., in) -> the output of each layer, as views of one array if they still have the weights that were
        fused."""
        pairs = zip(layers, self._parts, strict=True)
        if all(layer.get("weight") is weight and layer.get("bias") is bias for layer, (weight, bias) in pairs):
            return list(mx.split(mx.addmm(self._bias, x, self._weight.T), self._ends, axis=-1))
        return [layer(x) for layer in layers]

    def __deepcopy__(self, memo: object) -> None:
        return None  # a copied layer's arrays are its own
