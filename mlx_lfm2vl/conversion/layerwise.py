"""GPTQ of a whole model: layer after layer, on the inputs that a calibration set gives each.

Layers of the vision tower come first, then the projector, then those of the text, as far as they are quantised. What a
layer sees has gone through the rounded layers before it, so that it takes back what they changed. Within a layer,
modules of one input are rounded together, in the order in which the layer calls them. Memory: the model, the hidden
states of all tokens of the set, one module's Hessian and its factor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten

from ..models.context import Context
from ..models.siglip2 import pack_views, split_views, vision_passes
from ..pretrained import Lfm2VlForConditionalGeneration
from ..weights.load import StoredTensors
from ..weights.quantize import Quantization, decode, encode
from .calibration import Question
from .gptq import gptq
from .quantization_error import TOKENS, Inputs, Progress, Steps, embedded, encoded, greedy, load_to_measure

LOOKUPS = 1.0  # the share of looking rows up in the error of embeddings that are the head too
EMBEDDINGS = "model.language_model.embed_tokens"
Parts = dict[str, dict[str, mx.array]]  # the tensors of quantised modules, by path
Call = Callable[[], mx.array]  # a block on one input
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

    def embeds() -> list[mx.array]:
        ids = (np.array(prompt["input_ids"]) for prompt in prompts)
        return [evaluated(embedded(model, *each)) for each in zip(ids, images, answers, strict=True)]

    tied = "lm_head" not in model
    if tied and EMBEDDINGS in specs:
        walk.embeddings([model.model.language_model(x) for x in embeds()], [len(answer) for answer in answers])
    elif EMBEDDINGS in specs:
        walk.round(EMBEDDINGS, None)  # the layers see what it changes
    hidden = walk.text(embeds())
    if not tied:
        rows = [x[:, -len(answer) :] for x, answer in zip(hidden, answers, strict=True)]
        walk.round_all(model, [partial(model.logits, x) for x in rows])
    for path in specs.keys() - walk.parts.keys():
        walk.round(path, None)
    return walk.parts


def bytes_beside(stored: StoredTensors, widest: int) -> int:
    """The memory beside the model: quantised modules, and of the widest input four matrices, its Hessian, that with its
    rows in order, that with its columns too, and the factor."""
    return sum(info.nbytes for info in stored.infos.values()) // 2 + 4 * 4 * widest**2


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

    def round(self, path: str, hessian: mx.array | None) -> None:
        """Rounds one module; plainly without a Hessian."""
        module, spec = self._modules[path], self._specs[path]
        weight = module.weight
        if hessian is None or spec.mode != "affine":
            parts = encode(weight.astype(self._dtype), spec)
        else:
            parts = gptq(weight, hessian, spec, self._dtype)
        module.weight = decode(parts, spec, weight.dtype)
        mx.eval(parts, module.weight)
        self.parts[path] = parts
        self._steps.next()

    def round_all(self, block: nn.Module, calls: Sequence[Call]) -> None:
        """Rounds those modules of a block that `calls`, the block on all inputs, reach."""
        inside = {id(module) for _, module in block.named_modules()}
        waiting = {
            path: self._modules[path]
            for path in self._specs
            if path not in self.parts and id(self._modules[path]) in inside and path != EMBEDDINGS
        }
        while waiting and (found := first_inputs(self.model, waiting, calls)):
            for path in found[0]:
                self.round(path, found[1])
                del waiting[path]

    def block(self, block: nn.Module, calls: Sequence[Call]) -> list[mx.array]:
        """The outputs of a block whose modules are rounded for its inputs."""
        self.round_all(block, calls)
        return [evaluated(call()) for call in calls]

    def images(self, prompts: Sequence[Inputs]) -> list[mx.array | None]:
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
        views: list[dict[int, mx.array]] = [{} for _ in prompts]
        for (index, part, _, grids), array in zip(passes, tokens, strict=True):
            views[index] |= zip(part, split_views(array, grids), strict=True)
        return [mx.concatenate([each[view] for view in sorted(each)]) if each else None for each in views]

    def _vision(self, passes: Sequence[tuple[mx.array, Grids]]) -> list[mx.array]:
        """The projector's result for the patches of each pass."""
        tower, projector = self.model.model.vision_tower, self.model.model.multi_modal_projector
        grids = [grid for _, grid in passes]
        states = self.block(tower, [partial(tower.embeddings, *each) for each in passes])
        for index, layer in enumerate(tower.encoder.layers if "encoder" in tower else tower.layers):
            encode_one = partial(tower.encode, layers=slice(index, index + 1))
            states = self.block(layer, [partial(encode_one, *each) for each in zip(states, grids, strict=True)])
        states = [tower.post_layernorm(x) for x in states]
        return self.block(projector, [partial(projector, *each) for each in zip(states, grids, strict=True)])

    def embeddings(self, hidden: Sequence[mx.array], answers: Sequence[int]) -> None:
        """Rounds embeddings that are the head too. As a head they multiply the hidden states of the tokens that an
        answer is chosen at; as embeddings, whose rows are looked up, all their columns count alike.

        Args:
            hidden: the normed hidden states (1, L, hidden) of each prompt and its answer.
            answers: the length of each answer.
        """
        hessian = sum(gram(x[:, -count:]) for x, count in zip(hidden, answers, strict=True))
        assert isinstance(hessian, mx.array)
        self.round(EMBEDDINGS, evaluated(hessian + LOOKUPS * mx.diag(hessian).mean() * mx.eye(len(hessian))))

    def text(self, embeds: Sequence[mx.array]) -> list[mx.array]:
        """The normed hidden states (1, L, hidden) of each, through the layers."""
        body, states = self.model.model.language_model, list(embeds)
        for layer, kind in zip(body.layers, body.config.layer_types, strict=True):
            contexts = [body.contexts(Context.following(x.shape[1]))[kind] for x in states]
            states = self.block(layer, [partial(layer, x, of) for x, of in zip(states, contexts, strict=True)])
        return [body.embedding_norm(x) for x in states]


def first_inputs(
    model: nn.Module, modules: Mapping[str, nn.Module], calls: Sequence[Call]
) -> tuple[list[str], mx.array] | None:
    """The paths of those of a model's modules that are called first, with one input, and the Hessian of it over all
    calls. None if none is called."""
    seen: list[tuple[str, mx.array]] = []
    hessian, names = None, []
    model.update_modules(tree_unflatten([(name, Input(name, module, seen)) for name, module in modules.items()]))
    try:
        for call in calls:
            call()
            if not seen:
                return None
            x = seen[0][1]
            names = [name for name, other in seen if other is x]
            seen.clear()
            hessian = evaluated(gram(x) if hessian is None else hessian + gram(x))
    finally:
        model.update_modules(tree_unflatten(list(modules.items())))
    return None if hessian is None else (names, hessian)


def gram(x: mx.array) -> mx.array:
    """(..., in) -> (in, in) float32, the sum of x xᵀ."""
    rows = x.reshape(-1, x.shape[-1]).astype(mx.float32)
    return rows.T @ rows


def evaluated(x: mx.array) -> mx.array:
    mx.eval(x)
    return x
