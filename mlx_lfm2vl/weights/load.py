"""A folder on disk to a model in memory: every public layout, checked against the configuration before it is read.

Tensors are read lazily and once; a cast or a transposition is done tensor by tensor, so that no second copy of the
weights exists. All of them are evaluated before the model is returned: it can then be used from any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn

from .. import backends
from ..backends import cpu
from ..backends.thread_state import computing, stop_at_exit
from ..config import Lfm2VlConfig, read_json
from ..config.files import AGAIN
from ..errors import OptionError, WeightsError, first_line
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration, Lfm2VlModel
from ..threads import check_cancelled
from . import choices, quantize
from .files import FLOATING, TensorInfo, key_of, read_headers, reading, state, weight_files
from .fit import check_weights
from .names import is_conv_kernel, parameters, to_module

DTYPES: dict[str, mx.Dtype] = {name: getattr(mx, name) for name in choices.DTYPES}
PACKED = {mx.uint32: ("U32",), mx.uint8: ("U8",)}  # weights of quantised modules, scales of the fp4 and fp8 modes
TOWER_LAYERS = "model.vision_tower.encoder.layers."
M = TypeVar("M", bound=Lfm2VlModel | Lfm2VlForConditionalGeneration)


def dtype_of(name: str | mx.Dtype | None) -> mx.Dtype | None:
    """`float32`, `float16` or `bfloat16`, as a name or as MLX's own; None or "auto" is that of the file. Raises
    `OptionError`."""
    if name == "auto":
        return None
    if name is None or name in DTYPES.values():
        return name  # type: ignore[return-value]
    if not isinstance(name, str) or name not in DTYPES:
        raise OptionError(f"dtype is {name!r}, expected one of {', '.join(DTYPES)}, auto")
    return DTYPES[name]


@computing
def load_model(
    folder: Path,
    *,
    dtype: str | mx.Dtype | None = None,
    backend: str | None = None,
    model_class: type[M] = Lfm2VlForConditionalGeneration,  # type: ignore[assignment]
    prefix: str = "",
    progress: Callable[[str, int, int], None] | None = None,
) -> M:
    """The model of a folder.

    Args:
        folder: with config.json and safetensors files, of any public layout.
        dtype: "float32", "float16", "bfloat16", or "auto" for that of the file, quantised where that is. None is
            "auto", but on the backend numpy: there the weights are made float32 and dense, if memory allows;
            `load_note` of the model says so.
        backend: what computes it, see `backends.choose`.
        model_class: built from the configuration.
        prefix: what stands before its parameters' names in the whole model.
        progress: told of the bytes of the "weights".

    Raises:
        ConfigError, WeightsError, OptionError, OutOfMemoryError
    """
    target, chosen = dtype_of(dtype), backends.choose(backend)
    model, stored = open_model(folder, model_class=model_class, prefix=prefix)
    check_weights(str(folder), stored.infos, target)
    tensors, note = stored.read(target), ""
    if chosen == "numpy":
        if dtype is None:
            tensors, note = cpu.dequantize(model, tensors)
        tensors = cpu.by_columns(tensors)
    model.load_note, model.backend, model.checkpoint_key = note, chosen, key_of(folder, stored.files)
    model.load_weights(list(tensors.items()), strict=True)
    del tensors
    _evaluate(model, folder, progress)
    stored.check_unchanged()
    if chosen == "numpy":
        cpu.accelerate(model)
    else:
        with reading(folder):
            model.fuse()
    mx.clear_cache()  # what was read, cast and fused
    model.eval()
    return model


def _evaluate(model: nn.Module, folder: Path, progress: Callable[[str, int, int], None] | None) -> None:
    """Reads and casts all parameters, one by one: together, all would be read before the first is cast."""
    arrays = parameters(model).values()
    done, total = 0, sum(array.nbytes for array in arrays)
    for array in arrays:
        stop_at_exit()
        check_cancelled()
        with reading(folder):
            mx.eval(array)
        done += array.nbytes
        if progress is not None:
            progress("weights", done, total)


@dataclass(frozen=True)
class StoredTensors:
    """The tensors of a folder that its model needs, checked against the configuration and not read yet.

    `config` is fitted to the weights. `infos` goes by the names of the model's parameters, `names` from names in the
    files to names of the whole model's parameters, of which `prefix` is cut off.
    """

    config: Lfm2VlConfig
    files: tuple[Path, ...]
    names: dict[str, str]
    infos: dict[str, TensorInfo]
    prefix: str = ""
    state: tuple[tuple[int, ...], ...] = ()  # of the files when their headers were read

    def check_unchanged(self) -> None:
        """Raises `WeightsError` if a file was written to or replaced since: what was read is neither old nor new."""
        for file, before, now in zip(self.files, self.state, state(self.files), strict=True):
            if before != now:
                raise WeightsError(f"{file}: was replaced or written to while it was read; load it again")

    def read(self, dtype: mx.Dtype | None = None) -> dict[str, mx.array]:
        """The tensors, not yet evaluated, in MLX's orientation and cast to `dtype`. Only the result refers to them:
        what is cast is freed as it is cast. Raises `WeightsError`."""
        arrays: dict[str, mx.array] = {}
        for file in self.files:
            try:
                loaded = mx.load(str(file))
            except RuntimeError as error:
                raise WeightsError(f"{file}: cannot be read ({first_line(error)}); {AGAIN}") from None
            assert isinstance(loaded, dict)
            for name, array in loaded.items():
                module = self.names.get(name)
                if module is None or not module.startswith(self.prefix):
                    continue
                if module[len(self.prefix) :] in self.infos:
                    arrays[module[len(self.prefix) :]] = adapt(module, array, dtype)
        return arrays


@computing
def open_model(
    folder: Path,
    *,
    model_class: type[M] = Lfm2VlForConditionalGeneration,  # type: ignore[assignment]
    prefix: str = "",
) -> tuple[M, StoredTensors]:
    """The model that a folder describes, with parameters that are never computed, and the tensors that belong in it.

    Costs no memory: headers are read, tensors are not. Arguments and errors as those of `load_model`.
    """
    config = Lfm2VlConfig.from_dict(read_json(folder / "config.json"), str(folder / "config.json"))
    files = weight_files(folder)
    before = state(files)
    headers = read_headers(files)
    names = module_names(headers)
    infos = {module: headers[name] for name, module in names.items()}
    config = fit_config(config, infos)
    wanted = {module: info for module, info in infos.items() if module.startswith(prefix)}
    drop_unused(config, wanted)
    model = model_class(config)  # type: ignore[call-arg]
    plain = {module[len(prefix) :]: info for module, info in wanted.items()}
    quantize.prepare(model, plain, config.quantization)
    check_shapes(model, plain)
    return model, StoredTensors(config, tuple(files), names, plain, prefix, before)


def module_names(names: Iterable[str]) -> dict[str, str]:
    """Names in files to those of modules. Raises `WeightsError` for names of no known layout or two of one tensor."""
    out: dict[str, str] = {}
    seen: dict[str, str] = {}
    unknown = []
    for name in names:
        if name.endswith(".position_ids"):
            continue
        module = to_module(name)
        if module is None:
            unknown.append(name)
        elif module in seen:
            raise WeightsError(f"tensors {seen[module]} and {name} are the same parameter")
        else:
            out[name] = module
            seen[module] = name
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise WeightsError(f"tensor {unknown[0]}{more} has a name that no LFM2-VL layout has")
    return out


def fit_config(config: Lfm2VlConfig, tensors: dict[str, TensorInfo]) -> Lfm2VlConfig:
    """The configuration with the two numbers that published files state wrongly taken from the weights: the layers of
    the tower (LFM2-VL-1.6B has 26, its early configurations say 27, with or without `vision_feature_layer` -2) and the
    width of the feed-forward."""
    indices = {
        int(name[len(TOWER_LAYERS) :].split(".")[0])
        for name in tensors
        if name.startswith(TOWER_LAYERS) and name[len(TOWER_LAYERS) :].split(".")[0].isdigit()
    }
    stated = config.vision_config.num_hidden_layers
    lacks_one = config.vision_feature_layer == -2 or stated == 27
    if lacks_one and indices == set(range(stated - 1)):
        config = replace(config, vision_config=replace(config.vision_config, num_hidden_layers=stated - 1))
    first = tensors.get("model.language_model.layers.0.feed_forward.w1.weight")
    if first and len(first.shape) == 2 and first.shape[0] not in (0, config.text_config.feed_forward_size):
        config = replace(config, text_config=config.text_config.with_feed_forward_size(first.shape[0]))
    return config


def drop_unused(config: Lfm2VlConfig, tensors: dict[str, TensorInfo]) -> None:
    """Removes what some published files hold and the computation does not use: a LayerNorm of the projector that the
    configuration switches off, a head that is tied to the embeddings."""
    for name in list(tensors):
        stale_norm = not config.projector_use_layernorm and name.startswith("model.multi_modal_projector.layer_norm.")
        tied_head = config.tie_word_embeddings and name.startswith("lm_head.")
        if stale_norm or tied_head:
            del tensors[name]


def check_shapes(model: nn.Module, tensors: dict[str, TensorInfo]) -> None:
    """Raises `WeightsError` naming the first tensor that is missing, unknown or of another shape or type than the
    model's."""
    arrays = parameters(model)
    expected = {name: tuple(array.shape) for name, array in arrays.items()}
    if missing := [name for name in expected if name not in tensors]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise WeightsError(f"tensor {missing[0]}{more} is missing from the weight files")
    if unknown := [name for name in tensors if name not in expected]:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise WeightsError(f"{tensors[unknown[0]].file}: tensor {unknown[0]}{more} has no place in this model")
    for name, info in tensors.items():
        shapes = {expected[name]}
        if is_conv_kernel(name):  # (hidden, 1, K) is torch's orientation, (hidden, K, 1) MLX's
            hidden, taps, one = expected[name]
            shapes.add((hidden, one, taps))
        if info.shape not in shapes:
            wanted = f"the configuration asks for {list(expected[name])}"
            raise WeightsError(f"{info.file}: tensor {name} has shape {list(info.shape)}, {wanted}")
        types = FLOATING if mx.issubdtype(arrays[name].dtype, mx.floating) else PACKED[arrays[name].dtype]
        if info.dtype not in types:
            raise WeightsError(f"{info.file}: tensor {name} has dtype {info.dtype}, expected {' or '.join(types)}")


def adapt(name: str, array: mx.array, dtype: mx.Dtype | None) -> mx.array:
    """The tensor as the module has it: MLX's kernel orientation, `dtype` for floating-point numbers."""
    if is_conv_kernel(name) and array.ndim == 3 and array.shape[2] > array.shape[1]:
        array = mx.contiguous(array.transpose(0, 2, 1))
    if dtype is not None and mx.issubdtype(array.dtype, mx.floating):
        array = array.astype(dtype)
    return array
