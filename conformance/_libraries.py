"""Carry arrays between NumPy, where cases are made, and the library that an implementation speaks.

This is the one module of the suite that reaches for a framework, and only for the one that is under test.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from ia_core._arrays import dtype_name

__all__ = ["LIBRARIES", "from_library", "has_device", "numpy_dtype", "to_library", "vjp"]

# library -> the module whose `asarray` makes its arrays
LIBRARIES = {
    "numpy": "numpy",
    "torch": "torch",
    "jax": "jax.numpy",
    "cupy": "cupy",
    "array_api_strict": "array_api_strict",
}


def numpy_dtype(name: str) -> np.dtype:
    """A NumPy dtype by name, bfloat16 included."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def to_library(array: np.ndarray, library: str, device: str | None = None) -> Any:
    """A NumPy array as an array of the library, on the device."""
    if library == "numpy":
        return array
    module = importlib.import_module(LIBRARIES[library])
    if library == "torch":
        if array.dtype == ml_dtypes.bfloat16:  # PyTorch does not know NumPy's; float32 holds it exactly
            return module.asarray(array.astype(np.float32), device=device).to(module.bfloat16)
        # A NumPy array may have negative or zero strides, which torch refuses or warns about.
        return module.asarray(np.array(array), device=device)
    if library == "jax":
        importlib.import_module("jax").config.update("jax_enable_x64", True)
        place = None if device is None else importlib.import_module("jax").devices(device)[0]
        return module.asarray(array, device=place)
    if library == "cupy":
        return module.asarray(array)
    return module.asarray(array, device=device)


def from_library(array: Any) -> tuple[np.ndarray, str]:
    """An implementation's array as float64 (exactly), and the name of the dtype it came in."""
    name = dtype_name(array.dtype)
    if hasattr(array, "detach"):  # torch
        array = array.detach().cpu()
        array = array.float() if name == "bfloat16" else array
    elif type(array).__module__.startswith("cupy"):
        array = array.get()
    elif hasattr(array, "unwrap_numpy"):  # ndonnx
        array = array.unwrap_numpy()
    elif type(array).__module__.startswith("array_api_strict"):
        array = np.from_dlpack(array)
    return np.asarray(array).astype(np.float64), name


def has_device(library: str) -> bool:
    """Whether a library is installed and has something to run on; CuPy needs a GPU."""
    if importlib.util.find_spec(library) is None:
        return False
    if library != "cupy":
        return True
    try:
        return importlib.import_module("cupy").cuda.runtime.getDeviceCount() > 0
    except Exception:  # no driver, or a cupy that does not import: there is nothing to judge
        return False


def vjp(library: str, function: Callable[..., Any], inputs: Sequence[Any], cotangent: Any) -> tuple[Any, Sequence[Any]]:
    """The function's output and the gradient of <cotangent, output> for each input, by the library's autodiff."""
    if library == "torch":
        torch = importlib.import_module("torch")
        leaves = [array.detach().clone().requires_grad_(True) for array in inputs]
        output = function(*leaves)
        if not output.requires_grad:
            raise TypeError("the output does not depend on its inputs for autograd (it was detached)")
        found = torch.autograd.grad(output, leaves, cotangent, allow_unused=True)
        return output, [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]
    if library == "jax":
        output, pull = importlib.import_module("jax").vjp(function, *inputs)
        return output, pull(cotangent)
    raise TypeError(f"library {library} has no automatic differentiation; give Implementation(vjp=...)")
