"""A folder on disk to a model in memory: every public layout, checked against the configuration before it is read.

Tensors are read lazily and once; a cast or a transposition is done tensor by tensor, so that no second copy of the
weights exists. All of them are evaluated before the model is returned: it can then be used from any thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn

from .. import backends
from ..backends import cpu
from ..backends.thread_state import computing, stop_at_exit
from ..config import ModelConfig, config_of, read_json
from ..config.files import AGAIN
from ..errors import OptionError, WeightsError, and_more, first_line
from ..models.families import NETWORKS
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration, Lfm2VlModel
from ..models.tensor_parallel import shard
from ..threads import check_cancelled
from . import choices, quantize
from .corrections import drop_unused, fit_config
from .files import DTYPES as FILE_DTYPES
from .files import FLOATING, TensorInfo, key_of, read_part, reading, state
from .finite import check_finite
from .fit import check_weights
from .foreign import check_foreign, check_layout, naming_method
from .head import fit_head, with_embeddings
from .names import is_conv_kernel, module_names, parameters
from .shards import INDEX, Shards, read_shards

DTYPES: dict[str, mx.Dtype] = {name: getattr(mx, name) for name in choices.DTYPES}
PACKED = {mx.uint32: ("U32",), mx.uint8: ("U8",)}  # weights of quantised modules, scales of the fp4 and fp8 modes
Change = Callable[[nn.Module, dict[str, mx.array]], dict[str, mx.array]]  # tensors that a model will get, `apply`
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
    model_class: type[M] | None = None,
    prefix: str = "",
    adapt: Change | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    group: mx.distributed.Group | None = None,
) -> M:
    """The model of a folder.

    Args:
        folder: with config.json and safetensors files, of any public layout.
        dtype, backend: as for `mlx_lfm2vl.load`. On the backend numpy and without a dtype, weights are made float32 and
            dense, if memory allows; `load_note` of the model says so.
        model_class: built from the configuration; None is that of the family, with its head.
        prefix: what stands before its parameters' names in the whole model.
        adapt: puts an adapter into the model and its tensors before these are read (`Adapter.apply`).
        progress: told of the bytes of the "weights".
        group: ranks that compute the model together; each reads its part. Needs the backend mlx.

    Raises:
        ConfigError, WeightsError, OptionError, OutOfMemoryError
        NotFiniteError: for numbers beyond the range of float16, where that is asked for.
    """
    target, chosen = dtype_of(dtype), backends.choose("mlx" if group is not None and backend is None else backend)
    if group is not None and chosen != "mlx":
        raise OptionError("a model that several ranks share needs the backend mlx")
    model, stored = open_model(folder, model_class=model_class, prefix=prefix)
    mixed = stored.mixed_note if target is None else ""
    check_weights(str(folder), stored.infos, stored.dtype if mixed else target, 1 if group is None else group.size())
    tensors, note = stored.read(target) if group is None else stored.read_shard(model, group, target, adapt), ""
    if chosen == "numpy" and dtype is None:
        tensors, note = cpu.dequantize(model, tensors)
    tensors = adapt(model, tensors) if adapt is not None and group is None else tensors
    tensors = cpu.by_columns(tensors) if chosen == "numpy" else tensors
    model.load_note = "; ".join(filter(None, (*stored.notes, mixed, note)))
    model.backend, model.group, model.checkpoint_key = chosen, group, key_of(folder, stored.files)
    model.load_weights(list(tensors.items()), strict=True)
    del tensors
    narrowed = target is not None and target == mx.float16 and stored.dtypes != {"F16"}
    _evaluate(model, folder, progress, narrowed)
    stored.check_unchanged()
    if chosen == "numpy":
        cpu.accelerate(model)
    else:
        with reading(folder):
            model.fuse()
    mx.clear_cache()  # what was read, cast and fused
    model.eval()
    return model


def _evaluate(model: nn.Module, folder: Path, progress: Callable[[str, int, int], None] | None, narrowed: bool) -> None:
    """Reads and casts all parameters, one by one: together, all would be read before the first is cast. `narrowed`:
    whether numbers may have left the range of their type; then raises `NotFiniteError`."""
    arrays = parameters(model)
    done, total = 0, sum(array.nbytes for array in arrays.values())
    for name, array in arrays.items():
        stop_at_exit()
        check_cancelled()
        with reading(folder):
            mx.eval(array)
            if narrowed:
                check_finite(name, array)
        done += array.nbytes
        if progress is not None:
            progress("weights", done, total)


@dataclass(frozen=True)
class StoredTensors:
    """The tensors of a folder that its model needs, checked against the configuration and not read yet.

    `config` is fitted to the weights. `infos` goes by the names of the model's parameters, `names` from names in the
    files to these. `widths`: how modules are quantised, by path. `dtype`: of what is dense. `notes`: what the user
    should know of the files.
    """

    config: ModelConfig
    files: tuple[Path, ...]
    names: dict[str, str]
    infos: dict[str, TensorInfo]
    state: tuple[tuple[int, ...], ...]  # of the files when their headers were read
    widths: dict[str, quantize.Quantization]
    dtype: mx.Dtype
    notes: tuple[str, ...]

    @property
    def dtypes(self) -> set[str]:
        """The types of dense tensors, as safetensors names them."""
        return {info.dtype for info in self.infos.values() if info.dtype in FLOATING}

    @property
    def mixed_note(self) -> str:
        """A remark on what becomes of dense tensors of several types; empty where all are of one."""
        types = sorted(self.dtypes)
        name = str(self.dtype).removeprefix("mlx.core.")
        return f"{' and '.join(types)} weights are mixed; all are taken as {name}" if len(types) > 1 else ""

    def check_unchanged(self) -> None:
        """Raises `WeightsError` if a file was written to or replaced since: what was read is neither old nor new."""
        for file, before, now in zip(self.files, self.state, state(self.files), strict=True):
            if before != now:
                raise WeightsError(f"{file}: was replaced or written to while it was read; load it again")

    def read(self, dtype: mx.Dtype | None = None) -> dict[str, mx.array]:
        """The tensors, not yet evaluated, in MLX's orientation and cast to `dtype`, or else to the folder's. Only the
        result refers to them: what is cast is freed as it is cast. Raises `WeightsError`."""
        return read_tensors(self.files, self.names, self.dtype if dtype is None else dtype)

    def read_shard(
        self, model: nn.Module, group: mx.distributed.Group, dtype: mx.Dtype | None, change: Change | None
    ) -> dict[str, mx.array]:
        """As `read`, but of what is cut this rank's part only, which the model is made then. What an adapter changes
        (`change`) is read as a whole, a tensor at a time. Raises `WeightsError`."""
        whole = self.read(dtype)
        tensors = whole if change is None else change(model, whole)
        cuts = shard(model, group)
        stored = {name: name.replace(".linear.", ".") for name in cuts}  # a quantised layer within an adapter
        changed = {name for name in cuts if tensors[name] is not whole.get(stored[name])}
        del whole
        for name, cut in cuts.items():
            if name in changed:
                tensors[name] = cut.part(tensors[name], group)
            else:
                part = read_part(self.infos[stored[name]], cut.axis, cut.segments, group.rank(), group.size())
                tensors[name] = adapt(stored[name], part, self.dtype if dtype is None else dtype)
            mx.eval(tensors[name])
        return tensors


@computing
def open_model(
    folder: Path,
    *,
    model_class: type[M] | None = None,
    prefix: str = "",
) -> tuple[M, StoredTensors]:
    """The model that a folder describes, with parameters that are never computed, and the tensors that belong in it.

    Costs no memory: headers are read, tensors are not, but for a head that may be the embeddings. Arguments and errors
    as those of `load_model`.
    """
    data = read_json(folder / "config.json")
    config = config_of(data, str(folder / "config.json"))
    shards = read_shards(folder)
    method = data.get("quantization_config") or data.get("compression_config")
    check_foreign(shards.tensors, method)
    with naming_method(method):
        names = module_names(shards.tensors)
    names = with_embeddings(config, names)
    infos = {module: shards.tensors[name] for name, module in names.items()}
    config, notes = fit_head(fit_config(config, infos), data, infos, names)
    wanted = {module: info for module, info in infos.items() if module.startswith(prefix)}
    unused = [*(name for name in shards.tensors if name not in names), *drop_unused(config, wanted)]
    model: M = (model_class or NETWORKS[type(config)])(config)  # type: ignore[assignment]
    plain = {module[len(prefix) :]: info for module, info in wanted.items()}
    with naming_method(method):
        widths = quantize.prepare(model, plain)
        check_shapes(model, plain, folder, shards)
    config = replace(config, quantization=quantize.as_stored(model, widths, prefix))
    for part in (model, *(inner for inner in (model.get("model"),) if inner is not None)):
        part.config = replace(part.config, quantization=config.quantization)  # of the model's own class
    if unused:
        notes += (f"tensor {unused[0]}{and_more(unused)} left out, which the model does not use",)
    dtype = stored_dtype(config, plain.values())
    names = {name: module[len(prefix) :] for name, module in names.items() if module in wanted}
    notes = (*shards.notes, *notes)
    return model, StoredTensors(config, shards.files, names, plain, shards.state, widths, dtype, notes)


def read_tensors(files: Iterable[Path], names: Mapping[str, str], dtype: mx.Dtype) -> dict[str, mx.array]:
    """The tensors of files by the names of their parameters, not yet evaluated, as modules have them. `names`: in the
    files to those of parameters; others are left out. Raises `WeightsError`."""
    arrays: dict[str, mx.array] = {}
    for file in files:
        try:
            loaded: Any = mx.load(str(file))
        except RuntimeError as error:
            raise WeightsError(f"{file}: cannot be read ({first_line(error)}); {AGAIN}") from None
        for name, array in loaded.items():
            if (module := names.get(name)) is not None:
                arrays[module] = adapt(module, array, dtype)
    return arrays


def stored_dtype(config: ModelConfig, tensors: Iterable[TensorInfo]) -> mx.Dtype:
    """The type of a folder's floating-point tensors. Where they differ, as norms that training left in float32 do, it
    is what config.json says, as in the reference; if that says nothing, the type of most numbers."""
    counts: Counter[str] = Counter()
    for info in tensors:
        counts[info.dtype] += info.size if info.dtype in FLOATING else 0
    (most, _), *others = counts.most_common()
    stated = DTYPES.get(config.dtype or "")
    return stated if stated is not None and any(count for _, count in others) else FILE_DTYPES[most]


def check_shapes(model: nn.Module, tensors: dict[str, TensorInfo], folder: Path, shards: Shards) -> None:
    """Raises `WeightsError` naming the first tensor that is missing, unknown or of another shape or type than the
    model's. `shards`: the folder's files, for where a missing one may be."""
    arrays = parameters(model)
    expected = {name: tuple(array.shape) for name, array in arrays.items()}
    if missing := [name for name in expected if name not in tensors]:
        what = f"tensor {missing[0]}{and_more(missing)}"
        if shards.missing:
            raise WeightsError(f"{folder / shards.missing[0]}: no such file, and {what} is missing; fetch it")
        check_layout(shards.tensors)
        if shards.unnamed:
            raise WeightsError(
                f"{folder / INDEX}: names no file that holds {what}, and {', '.join(shards.unnamed)} left alone; "
                "remove this index, and all files are read"
            )
        raise WeightsError(f"{what} is missing from the weight files")
    if unknown := [name for name in tensors if name not in expected]:
        what = f"tensor {unknown[0]}{and_more(unknown)}"
        raise WeightsError(f"{tensors[unknown[0]].file}: {what} has no place in this model")
    for name, info in tensors.items():
        shapes = {expected[name]}
        if is_conv_kernel(name):  # (hidden, 1, K) is torch's orientation, (hidden, K, 1) MLX's
            hidden, *taps, one = expected[name]
            shapes.add((hidden, one, *taps))
        if info.shape not in shapes:
            wanted = f"the configuration asks for {list(expected[name])}"
            raise WeightsError(f"{info.file}: tensor {name} has shape {list(info.shape)}, {wanted}")
        types = FLOATING if mx.issubdtype(arrays[name].dtype, mx.floating) else PACKED[arrays[name].dtype]
        if info.dtype not in types:
            raise WeightsError(f"{info.file}: tensor {name} has dtype {info.dtype}, expected {' or '.join(types)}")


def adapt(name: str, array: mx.array, dtype: mx.Dtype) -> mx.array:
    """The tensor as the module has it: MLX's kernel orientation, `dtype` for floating-point numbers."""
    if is_conv_kernel(name) and array.ndim > 2 and array.shape[-1] > array.shape[1]:
        array = mx.contiguous(mx.moveaxis(array, 1, -1))
    return array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) else array
