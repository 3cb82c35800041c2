"""GPTQ: a weight rounded so that the output of its layer changes least on given inputs.

Frantar et al., https://arxiv.org/abs/2210.17323. The columns of a weight W (out, in) are rounded one after the other,
and what rounding one changes in the output is taken back by those that are not rounded yet. Columns of large inputs
come first, while most are left to take back what they change (the authors' `act-order`, with groups that stay where
they are). What is rounded is no W itself but a weight whose outputs on the given inputs are near those of W on the
inputs of the dense model, which takes back what layers before have changed (asymmetric calibration, Li et al.,
https://arxiv.org/abs/2504.02692). The result has MLX's affine format, so that every MLX program reads it.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from ..weights.quantize import PARTS, Quantization

DAMPING = 0.01  # of the mean diagonal, added to the diagonal
LEAST = 1e-7  # of a scale, as MLX rounds; float16 has it
RIDGE = 0.3  # of the mean diagonal, against inputs that are too few to learn a weight from
BLOCK = 32  # columns whose changes reach the columns after them in one product
CLIPPING = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)  # shares of a group's range that are tried


def gptq(
    weight: mx.array, hessian: mx.array, spec: Quantization, dtype: mx.Dtype, correction: mx.array | None = None
) -> dict[str, mx.array]:
    """The tensors of a quantised module, as `quantize.encode` makes them by plain rounding.

    Args:
        weight: (out, in).
        hessian: (in, in) float32, the sum of x xᵀ over the inputs x of the layer.
        spec: an affine width; its groups divide `in`.
        dtype: of scales and biases.
        correction: (in, in) float32, of `correction_of`: W + W C is rounded. None where there is none to make.

    Returns:
        `weight` uint32, `scales` and `biases`, evaluated.
    """
    assert spec.mode == "affine"
    weight = weight.astype(mx.float32)
    if correction is not None:
        weight = weight + weight @ correction
    hessian = damped(hessian)
    scales, biases = scales_and_biases(weight, mx.diag(hessian), spec)
    scales, biases = scales.astype(dtype), biases.astype(dtype)
    steps, zeros = (np.array(array.astype(mx.float32)) for array in (scales, biases))
    order = mx.argsort(-mx.diag(hessian))
    factor = inverse_factor(hessian, order)
    levels = rounded(np.array(weight), np.array(factor), np.array(order), steps, zeros, spec)
    made = dict(zip(PARTS, (packed(levels, spec.bits), scales, biases), strict=True))
    mx.eval(made)
    return made


def correction_of(hessian: mx.array, drift: mx.array) -> mx.array:
    """The C (in, in) with which W + W C gives on the inputs x, by least squares, what W gives on those of the dense
    model: D (H + λ)⁻¹. λ holds it where the inputs say little.

    Args:
        hessian: (in, in) float32, H, the sum of x xᵀ.
        drift: (in, in) float32, D, the sum of (d - x) xᵀ, d the inputs in the dense model.
    """
    hessian = damped(hessian)
    ridge = RIDGE * mx.diag(hessian).mean()
    factor = mx.linalg.cholesky(hessian + ridge * mx.eye(len(hessian)), stream=mx.cpu)
    return drift @ mx.linalg.cholesky_inv(factor, stream=mx.cpu)


def damped(hessian: mx.array) -> mx.array:
    """A Hessian that has an inverse: of inputs that are always zero too."""
    diagonal = mx.diag(hessian)
    added = mx.where(diagonal > 0, DAMPING * diagonal.mean(), 1.0)
    return hessian + mx.diag(added)


def inverse_factor(hessian: mx.array, order: mx.array) -> mx.array:
    """The upper triangular U (in, in) of H⁻¹ = Uᵀ U, H with rows and columns in `order`. With that order turned round,
    H = R Rᵀ of an upper triangular R, and U is its inverse. MLX factors on the CPU, whatever the device."""
    back = order[::-1]
    turned = mx.linalg.cholesky(hessian[back][:, back], stream=mx.cpu)
    return mx.linalg.tri_inv(turned[::-1, ::-1], upper=True, stream=mx.cpu)


def scales_and_biases(weight: mx.array, importance: mx.array, spec: Quantization) -> tuple[mx.array, mx.array]:
    """Scale and bias of each group, (out, groups) float32: of the ranges in `CLIPPING`, each put right by least squares
    for the levels that it gives, the one with the least squared error.

    Args:
        weight: (out, in) float32.
        importance: (in,) the weight of each column's squared error.
        spec: bits and group size.
    """
    groups = weight.reshape(weight.shape[0], -1, spec.group_size)
    share = importance.reshape(1, -1, spec.group_size)
    share = share / share.sum(axis=-1, keepdims=True)
    low, high = groups.min(axis=-1, keepdims=True), groups.max(axis=-1, keepdims=True)
    mean = (share * groups).sum(axis=-1, keepdims=True)
    found: list[mx.array] = []
    for part in CLIPPING:
        scale = mx.maximum(part * (high - low) / (2**spec.bits - 1), LEAST)
        levels = _levels(groups, scale, mean + part * (low - mean), spec)
        centre = (share * levels).sum(axis=-1, keepdims=True)
        spread = (share * (levels - centre) ** 2).sum(axis=-1, keepdims=True)
        slope = (share * (levels - centre) * (groups - mean)).sum(axis=-1, keepdims=True) / mx.maximum(spread, 1e-12)
        scale = mx.where(slope > LEAST, slope, scale)
        bias = mean - scale * centre
        change = groups - scale * _levels(groups, scale, bias, spec) - bias
        new = [(share * change**2).sum(axis=-1, keepdims=True), scale, bias]
        better = new[0] < found[0] if found else None
        found = new if better is None else [mx.where(better, a, b) for a, b in zip(new, found, strict=True)]
        mx.eval(found)
    return found[1].squeeze(-1), found[2].squeeze(-1)


def _levels(groups: mx.array, scale: mx.array, bias: mx.array, spec: Quantization) -> mx.array:
    return mx.clip(mx.round((groups - bias) / scale), 0, 2**spec.bits - 1)


def rounded(
    weight: np.ndarray,
    factor: np.ndarray,
    order: np.ndarray,
    scales: np.ndarray,
    biases: np.ndarray,
    spec: Quantization,
) -> np.ndarray:
    """The levels of a weight, with error feedback.

    Args:
        weight: (out, in) float32.
        factor: (in, in) float32, `inverse_factor` of the damped Hessian with rows and columns in `order`.
        order: (in,) the columns as they are rounded.
        scales: (out, groups) float32.
        biases: (out, groups) float32.
        spec: bits and group size.

    Returns:
        (out, in) uint8.
    """
    columns = np.ascontiguousarray(weight.T[order])  # a row for each column of the weight
    scales, biases = np.ascontiguousarray(scales.T), np.ascontiguousarray(biases.T)
    levels = np.empty(columns.shape, np.uint8)
    for start in range(0, len(columns), BLOCK):
        end = start + BLOCK
        errors = np.empty_like(columns[start:end])
        for at in range(start, start + len(errors)):
            scale, bias = (array[order[at] // spec.group_size] for array in (scales, biases))
            level = np.clip(np.rint((columns[at] - bias) / scale), 0, 2**spec.bits - 1)
            error = (columns[at] - level * scale - bias) / factor[at, at]
            columns[at + 1 : end] -= factor[at, at + 1 : end, None] * error
            levels[order[at]], errors[at - start] = level, error
        columns[end:] -= factor[start:end, end:].T @ errors
    return levels.T


def packed(levels: np.ndarray, bits: int) -> mx.array:
    """Levels (out, in) in MLX's format: (out, in * bits / 32) uint32, a stream of bits with the lowest first."""
    lowest_first = (levels[..., None] >> np.arange(bits, dtype=np.uint8)) & 1
    rows = np.packbits(lowest_first.reshape(len(levels), -1), axis=1, bitorder="little")
    return mx.array(rows.view("<u4"))
