"""GPTQ of a whole model: layer after layer, on the inputs that a calibration set gives each.

Layers of the vision tower come first, then the projector, then those of the text, as far as they are quantised. What a
layer sees has gone through the rounded layers before it; beside it goes what the dense model's sees, so that it takes
back what they changed. Within a layer, modules of one input are rounded together, in the order in which the layer calls
them. Memory: the model, both hidden states of all tokens of the set, a layer's dense weights, matrices of one input.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten

from ..models.layers import Context
from ..models.siglip2 import pack_views, split_views, vision_passes
from ..pretrained import Lfm2VlForConditionalGeneration
from ..weights.load import StoredTensors
from ..weights.quantize import Quantization, decode, encode
from .calibration import Question
from .gptq import correction_of, gptq
from .quantization_error import TOKENS, Inputs, Progress, Steps, embedded, encoded, greedy, load_to_measure

LOOKUPS = 1.0  # the share of looking rows up in the error of embeddings that are the head too
EMBEDDINGS = "model.language_model.embed_tokens"
Parts = dict[str, dict[str, mx.array]]  # the tensors of quantised modules, by path
Call = Callable[[mx.array], mx.array]  # a block on its input
Pair = tuple[mx.array, mx.array]  # what the rounded layers before give, and what the dense ones give
Grids = list[tuple[int, int]]


def quantize_layerwise(
    folder: Path,
    specs: Mapping[str, Quantization],
    asked: Sequence[Question],
    dtype: mx.Dtype,
    *,
    compute: mx.Dtype | None = mx.float32,
    progress: Progress | None = None,
) -> Parts:
    """The tensors of quantised modules, for `stream.translate`.

    The model answers the questions first; it is calibrated on questions and answers.

    Args:
        folder: a dense model.
        specs: affine widths by path; modules that are not named stay dense.
        asked: the calibration set.
        dtype: of the scales.
        compute: what the model computes in, as `check_memory` chooses it.
        progress: told of "answering" and of "calibrating", in modules.

    Returns:
        Tensors of all modules in `specs`. Those that no question reaches, and those of other modes than affine, are
        rounded plainly.
    """
    model, processor = load_to_measure(folder, compute)
    steps = Steps("answering", len(asked), TOKENS + 2, progress)
    prompts, answers = [encoded(processor, question) for question in asked], []
    for prompt in prompts:
        answers.append(greedy(model, prompt, steps))
        steps.next()
    walk = Walk(model, specs, dtype, Steps("calibrating", len(specs), 1, progress))
    images = walk.images(prompts)

    def embeds(side: int) -> list[mx.array]:
        ids = (np.array(prompt["input_ids"]) for prompt in prompts)
        pictures = (pair and pair[side] for pair in images)
        return [evaluated(embedded(model, *each)) for each in zip(ids, pictures, answers, strict=True)]

    dense = embeds(1)
    tied = "lm_head" not in model
    if tied and EMBEDDINGS in specs:
        walk.embeddings([model.model.language_model(x) for x in dense], [len(answer) for answer in answers])
    elif EMBEDDINGS in specs:
        walk.round(EMBEDDINGS)  # the layers see what it changes
    hidden = walk.text(list(zip(embeds(0), dense, strict=True)))
    if not tied:
        rows = [(x[:, -len(answer) :], y[:, -len(answer) :]) for (x, y), answer in zip(hidden, answers, strict=True)]
        walk.round_all(model, [model.logits] * len(rows), rows)
    for path in specs.keys() - walk.parts.keys():
        walk.round(path)
    return walk.parts


def bytes_beside(stored: StoredTensors, widest: int) -> int:
    """The memory beside the model: quantised modules, and of the widest input seven matrices: its Hessian, the drift,
    the correction, the damped Hessian, that in order, its factor, and the inverse of it."""
    return sum(info.nbytes for info in stored.infos.values()) // 2 + 7 * 4 * widest**2


class Input(nn.Module):
    """A module that notes what it is called with. It has no weight, so that nothing is computed without calling it."""

    def __init__(self, name: str, module: nn.Module, seen: list[tuple[str, mx.array]]):
        super().__init__()
        self._name, self._module, self._seen = name, module, seen

    def __call__(self, x: mx.array) -> mx.array:
        self._seen.append((self._name, x))
        return self._module(x)  # type: ignore[no-any-return]


class Walk:
    """A model whose modules are rounded in place while inputs go through it.

    `specs`: the widths of the modules to round, by path. `dtype`: of the scales that are made. `parts`: the tensors of
    those that are rounded.
    """

    def __init__(
        self, model: Lfm2VlForConditionalGeneration, specs: Mapping[str, Quantization], dtype: mx.Dtype, steps: Steps
    ):
        self.model, self._specs, self._dtype, self._steps = model, specs, dtype, steps
        self.parts: Parts = {}
        self._modules: dict[str, Any] = dict(model.named_modules())
        self._dense: dict[str, mx.array] = {}  # weights of those modules of the block in hand that are rounded

    def round(self, path: str, hessian: mx.array | None = None, correction: mx.array | None = None) -> None:
        """Rounds one module; plainly without a Hessian."""
        module, spec = self._modules[path], self._specs[path]
        weight = module.weight
        if hessian is None or spec.mode != "affine":
            parts = encode(weight.astype(self._dtype), spec)
        else:
            parts = gptq(weight, hessian, spec, self._dtype, correction)
        module.weight = decode(parts, spec, weight.dtype)
        mx.eval(parts, module.weight)
        self.parts[path] = parts
        self._steps.next()

    def round_all(self, block: nn.Module, calls: Sequence[Call], states: Sequence[Pair]) -> None:
        """Rounds those modules of a block that `calls`, the block on each of `states`, reach."""
        inside = {id(module) for _, module in block.named_modules()}
        waiting = {
            path: self._modules[path]
            for path in self._specs
            if path not in self.parts and id(self._modules[path]) in inside and path != EMBEDDINGS
        }
        self._dense = {}
        while waiting and (found := self.first_inputs(waiting, calls, states)):
            names, hessian, drift = found
            correction = evaluated(correction_of(hessian, drift))
            for path in names:
                self._dense[path] = waiting.pop(path).weight
                self.round(path, hessian, correction)

    def block(self, block: nn.Module, calls: Sequence[Call], states: Sequence[Pair]) -> list[Pair]:
        """The outputs of a block whose modules are rounded for these inputs, and of the dense one."""
        self.round_all(block, calls, states)
        given = [evaluated(call(x)) for call, (x, _) in zip(calls, states, strict=True)]
        with self.dense():
            wanted = [evaluated(call(x)) for call, (_, x) in zip(calls, states, strict=True)]
        return list(zip(given, wanted, strict=True))

    @contextlib.contextmanager
    def dense(self) -> Iterator[None]:
        """Puts back the dense weights of the block in hand."""
        rounded = {path: self._modules[path].weight for path in self._dense}
        try:
            for path, weight in self._dense.items():
                self._modules[path].weight = weight
            yield
        finally:
            for path, weight in rounded.items():
                self._modules[path].weight = weight

    def first_inputs(
        self, modules: Mapping[str, nn.Module], calls: Sequence[Call], states: Sequence[Pair]
    ) -> tuple[list[str], mx.array, mx.array] | None:
        """The paths of those modules that are called first, with one input; over all calls its Hessian, and its drift
        from that of the dense model, as `correction_of` takes them. None if none is called."""
        seen: list[tuple[str, mx.array]] = []
        hessian, drift, names = mx.array(0.0), mx.array(0.0), []
        self.model.update_modules(
            tree_unflatten([(name, Input(name, module, seen)) for name, module in modules.items()])
        )
        try:
            for call, (x, y) in zip(calls, states, strict=True):
                with self.dense():
                    call(y)
                if not seen:
                    return None
                wanted = seen[0][1]
                seen.clear()
                call(x)
                given = seen[0][1]
                names = [name for name, other in seen if other is given]
                seen.clear()
                hessian, drift = hessian + gram(given, given), drift + gram(wanted - given, given)
                mx.eval(hessian, drift)
        finally:
            self.model.update_modules(tree_unflatten(list(modules.items())))
        return (names, hessian, drift) if names else None

    def images(self, prompts: Sequence[Inputs]) -> list[Pair | None]:
        """The image tokens (n, hidden) of each prompt, through tower and projector."""
        body, passes = self.model.model, list[tuple[int, list[int], mx.array, Grids]]()
        for index, prompt in enumerate(prompts):
            pixels, shapes = body.views_of(dict(prompt), prompt["input_ids"])
            if pixels is not None:
                pixels, grids = body.check_views(pixels, shapes)
                for part in vision_passes(grids):
                    chosen = [grids[view] for view in part]
                    packed = pack_views(mx.stack([pixels[view] for view in part]), chosen)
                    passes.append((index, part, packed, chosen))
        tokens = self._vision([(packed, grids) for _, _, packed, grids in passes])
        views: list[dict[int, Pair]] = [{} for _ in prompts]
        for (index, part, _, grids), (given, wanted) in zip(passes, tokens, strict=True):
            views[index] |= zip(
                part, zip(split_views(given, grids), split_views(wanted, grids), strict=True), strict=True
            )
        joined = ([each[view] for view in sorted(each)] for each in views)
        return [
            (mx.concatenate([x for x, _ in each]), mx.concatenate([y for _, y in each])) if each else None
            for each in joined
        ]

    def _vision(self, passes: Sequence[tuple[mx.array, Grids]]) -> list[Pair]:
        """The projector's result for the patches of each pass."""
        tower, projector = self.model.model.vision_tower, self.model.model.multi_modal_projector
        grids = [grid for _, grid in passes]
        pixels = [(x, x) for x, _ in passes]
        states = self.block(tower, [partial(tower.embeddings, grids=grid) for grid in grids], pixels)
        for index, layer in enumerate(tower.encoder.layers if "encoder" in tower else tower.layers):
            encode_one = partial(tower.encoder, layers=slice(index, index + 1))
            states = self.block(layer, [partial(encode_one, grids=grid) for grid in grids], states)
        states = [(tower.post_layernorm(x), tower.post_layernorm(y)) for x, y in states]
        return self.block(projector, [partial(projector, grids=grid) for grid in grids], states)

    def embeddings(self, hidden: Sequence[mx.array], answers: Sequence[int]) -> None:
        """Rounds embeddings that are the head too. As a head they multiply the hidden states of the tokens that an
        answer is chosen at; as embeddings, whose rows are looked up, all their columns count alike.

        Args:
            hidden: the normed hidden states (1, L, hidden) of each prompt and its answer.
            answers: the length of each answer.
        """
        rows = [x[:, -count:] for x, count in zip(hidden, answers, strict=True)]
        hessian = evaluated(sum((gram(x, x) for x in rows), mx.array(0.0)))
        self.round(EMBEDDINGS, hessian + LOOKUPS * mx.diag(hessian).mean() * mx.eye(len(hessian)))

    def text(self, embeds: Sequence[Pair]) -> list[Pair]:
        """The normed hidden states (1, L, hidden) of each, through the layers."""
        body, states = self.model.model.language_model, list(embeds)
        for layer, kind in zip(body.layers, body.config.layer_types, strict=True):
            contexts = [body.contexts(Context.following(x.shape[1]))[kind] for x, _ in states]
            states = self.block(layer, [partial(layer, context=context) for context in contexts], states)
        return [(body.embedding_norm(x), body.embedding_norm(y)) for x, y in states]


def gram(x: mx.array, y: mx.array) -> mx.array:
    """(..., in) twice -> (in, in) float32, the sum of x yᵀ."""
    rows, others = (each.reshape(-1, each.shape[-1]).astype(mx.float32) for each in (x, y))
    return rows.T @ others


def evaluated(x: mx.array) -> mx.array:
    mx.eval(x)
    return x
