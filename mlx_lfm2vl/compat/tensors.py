"""Arrays of torch, NumPy and MLX, each made of the others. The only importer of torch.

torch and MLX are imported only when a caller asks for their arrays, or hands them in; then they are there already. A
program that only processes pictures starts neither.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from typing import Any

import numpy as np

from ..errors import OptionError
from ..processing.arrays import is_bfloat16, is_mlx, is_torch, to_numpy

RETURN_TENSORS = ("np", "mlx", "pt")
_FLOATING = ("float32", "float16", "bfloat16", "float64")
_SHORT = {
    **{"float": "float32", "fp32": "float32", "half": "float16", "fp16": "float16"},
    **{"bf16": "bfloat16", "double": "float64"},
}
_DEVICES = ("auto", "cpu", "cuda", "gpu", "mlx", "mps", "xpu")  # all are one memory here


class Device(str):
    """The device that computes a model, in torch's spelling: "mps", "cuda" or "cpu". torch takes it as a device."""

    @property
    def type(self) -> str:
        return str(self)


def current_device() -> Device:
    """MLX's default device."""
    import mlx.core as mx

    if mx.default_device() == mx.Device(mx.cpu):
        return Device("cpu")
    return Device("mps" if mx.metal.is_available() else "cuda")


def to_mlx(value: Any) -> Any:
    """A tensor of torch as an MLX array of the same dtype; every other value as it is."""
    if not is_torch(value):
        return value
    import mlx.core as mx

    array = mx.array(to_numpy(value))
    return array.astype(mx.bfloat16) if is_bfloat16(value) else array


def to_torch(value: Any) -> Any:
    """An array as a tensor of torch, of the same dtype."""
    import torch

    if is_torch(value):
        return value
    array = np.asarray(to_numpy(value), order="C")
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    return tensor.bfloat16() if is_bfloat16(value) else tensor


def as_kind_of(like: Any, value: Any) -> Any:
    """An MLX array, or a tensor of torch where `like` is one. What is no array, and what a list or tuple holds that is
    none, stays as it is."""
    if isinstance(value, (list, tuple)):
        return type(value)(as_kind_of(like, each) for each in value)
    return to_torch(value).to(like.device) if is_torch(like) and is_mlx(value) else value


def first_given(*values: Any) -> Any:
    """The first that is not None; None if there is none."""
    return next((value for value in values if value is not None), None)


def of_numpy(like: Any, value: np.ndarray) -> Any:
    """A NumPy array as an MLX array, or as a tensor of torch where `like` is one."""
    import mlx.core as mx

    return as_kind_of(like, mx.array(value))


def dtype_name(dtype: Any) -> str:
    """The name of a floating-point dtype of torch, NumPy or MLX, or of a text. Raises `OptionError` for others."""
    name = dtype if isinstance(dtype, str) else str(dtype)
    name = name.rpartition(".")[2].rstrip("'>")
    name = _SHORT.get(name, name)
    if name not in _FLOATING:
        raise OptionError(f"dtype is {dtype!r}, expected one of {', '.join(_FLOATING[:3])}")
    return name


def is_dtype(value: Any) -> bool:
    """Whether a value is or names a floating-point dtype."""
    try:
        dtype_name(value)
    except OptionError:
        return False
    return True


def check_device(device: Any) -> None:
    """Raises `OptionError` for what is no device of this machine. MLX's memory is one, so a move costs nothing."""
    kind = str(getattr(device, "type", device)).rpartition(".")[2].partition(":")[0]
    if kind not in _DEVICES and not (isinstance(device, int) and not isinstance(device, bool) and device >= 0):
        raise OptionError(f"device is {device!r}, expected one of {', '.join(_DEVICES)}")


def device_and_dtype(arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, str | None]:
    """What a call of `to` asks for: a device or None, and the name of a dtype or None. Raises `OptionError` for what is
    neither."""
    named.pop("non_blocking", None)
    device, *dtypes = (named.pop(name, None) for name in ("device", "dtype", "torch_dtype"))
    if named or len(arguments) > 2:
        raise OptionError(f"to() takes a device and a dtype, not {', '.join(named) or len(arguments)}")
    for value in arguments:
        if is_dtype(value):
            dtypes.insert(0, value)
        elif value is not None:
            device = value
    if device is not None:
        check_device(device)
    dtype = first_given(*dtypes)
    return device, None if dtype is None else dtype_name(dtype)


def cast(value: Any, dtype: Any) -> Any:
    """A floating-point array in another dtype; whole numbers and what is no array stay as they are. NumPy has no
    bfloat16, so such an array becomes MLX's."""
    name = dtype_name(dtype)
    if is_torch(value):
        import torch

        return value.to(getattr(torch, name)) if value.is_floating_point() else value
    floating = isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating)
    if floating and name != "bfloat16":
        return value.astype(name)
    if floating or is_mlx(value):
        from ..backends.thread_state import computing

        return computing(_cast_by_mlx)(value, name)
    return value


def _cast_by_mlx(value: Any, name: str) -> Any:
    import mlx.core as mx

    array = mx.array(value)
    if not mx.issubdtype(array.dtype, mx.floating):
        return value
    array = array.astype(getattr(mx, name))
    mx.eval(array)  # so that any thread may use it
    return array


def move(value: Any, device: Any) -> Any:
    """A tensor of torch on another device; every other value as it is, and tensors where the device is MLX's."""
    own = isinstance(device, Device) or type(device).__module__ == "mlx.core" or device in ("auto", "gpu", "mlx")
    return value.to(device) if is_torch(value) and not own else value


def check_return_tensors(return_tensors: Any) -> str | None:
    """The value as a name of `RETURN_TENSORS`, or None. "pt" without torch is "mlx", with one warning. Raises
    `OptionError`."""
    name = getattr(return_tensors, "value", return_tensors)  # transformers' enum
    if name is not None and name not in RETURN_TENSORS:
        raise OptionError(
            f"return_tensors is {return_tensors!r}, expected 'np', 'mlx', 'pt' (torch), or None for lists"
        )
    if name == "pt" and importlib.util.find_spec("torch") is None:
        _warn_without_torch()
        return "mlx"
    return name


def tensor(value: Any, return_tensors: str) -> Any:
    """An array, or rows of equal length, as `return_tensors` says; numbers and rows of unequal length stay lists."""
    if return_tensors == "pt":
        return to_torch(value)
    if return_tensors == "mlx":
        import mlx.core as mx

        return value if is_mlx(value) else mx.array(to_numpy(value))
    return to_numpy(value)


@functools.cache
def _warn_without_torch() -> None:
    warnings.warn(
        "return_tensors='pt' gives MLX arrays here, as torch is not installed; the models take them", stacklevel=5
    )
