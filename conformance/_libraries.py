"""Carry arrays between NumPy, where cases are made, and the library that an implementation speaks.

This is the one module of the suite that reaches for a framework, and only for the one that is under test.
"""

from __future__ import annotations

import importlib
import importlib.util
import random
import sys
import unittest
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ia_core._arrays import dtype_name

__all__ = [
    "AUTODIFF",
    "LIBRARIES",
    "NotSupported",
    "changed_settings",
    "compile_function",
    "double_derivative",
    "expanded",
    "from_library",
    "has_device",
    "make_room",
    "numpy_dtype",
    "other_random_states",
    "peak_on_device",
    "random_states",
    "settings_of",
    "to_library",
    "vjp",
    "vmap",
]

# library -> the module whose `asarray` makes its arrays
LIBRARIES = {
    "numpy": "numpy",
    "torch": "torch",
    "jax": "jax.numpy",
    "cupy": "cupy",
    "array_api_strict": "array_api_strict",
}

# What differentiates, and what Python-level random numbers and settings are looked at besides NumPy's.
AUTODIFF = ("torch", "jax")


# Linux allows a process 65530 maps of memory by default. Each function that XLA compiled holds about four.
MAPS = 30_000


class NotSupported(unittest.SkipTest):
    """A clause cannot be judged here: the library, or the operating system, has no such thing.

    Hypothesis lets a ``SkipTest`` through at once, without looking for a smaller one.

    Examples
    --------
    >>> str(NotSupported("numpy has no automatic differentiation"))
    'numpy has no automatic differentiation'
    """


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


def vjp(
    library: str,
    function: Callable[..., Any],
    inputs: Sequence[Any],
    cotangent: Any,
    wanted: Collection[int] | None = None,
) -> tuple[Any, list[Any]]:
    """The function's output and the gradients of <cotangent, output>, by the library's automatic differentiation.

    Parameters
    ----------
    library : str
    function : callable
        Of the inputs; gives an array, or a tuple of arrays.
    inputs : sequence of array
    cotangent : array or tuple of array
        As the function gives them.
    wanted : collection of int, optional
        Which inputs need a gradient; the others are constants. All by default.

    Returns
    -------
    output, list of array
        One gradient for each input that was wanted, in the order of the inputs.
    """
    wanted = sorted(range(len(inputs)) if wanted is None else wanted)
    if library == "torch":
        torch = importlib.import_module("torch")
        leaves = [x.detach().clone().requires_grad_(n in wanted) for n, x in enumerate(inputs)]
        with torch.enable_grad():
            output = function(*leaves)
        outputs, cotangents = _together(output, cotangent)
        if not all(one.requires_grad for one in outputs):
            raise TypeError("the output does not depend on its inputs for autograd (it was detached)")
        asked = [leaves[n] for n in wanted]
        found = torch.autograd.grad(outputs, asked, cotangents, allow_unused=True)
        return output, [torch.zeros_like(x) if g is None else g for x, g in zip(asked, found, strict=True)]
    if library == "jax":
        output, pull = importlib.import_module("jax").vjp(
            lambda *some: function(*_put(inputs, wanted, some)), *(inputs[n] for n in wanted)
        )
        return output, list(pull(cotangent))
    raise TypeError(f"library {library} has no automatic differentiation; give Implementation(vjp=...)")


def double_derivative(
    library: str,
    function: Callable[..., Any],
    inputs: Sequence[Any],
    cotangent: Any,
    weights: Sequence[Any],
    directions: Sequence[Any],
) -> float:
    """d/de <gradient at inputs + e directions, weights> at e = 0, by differentiating the library's gradient.

    The gradient is that of <cotangent, function(inputs)>. The cotangent moves too: the last direction is its.
    """
    if library == "torch":
        torch = importlib.import_module("torch")
        leaves = [x.detach().clone().requires_grad_(True) for x in (*inputs, cotangent)]
        with torch.enable_grad():
            found = torch.autograd.grad(
                function(*leaves[:-1]), leaves[:-1], leaves[-1], create_graph=True, allow_unused=True
            )
            total = sum((g * w).sum() for g, w in zip(found, weights, strict=True) if g is not None)
            second = torch.autograd.grad(total, leaves, allow_unused=True)
        return float(sum((g * d).sum() for g, d in zip(second, directions, strict=True) if g is not None))
    if library == "jax":
        jax = importlib.import_module("jax")

        def gradient(*everything: Any) -> Any:
            return jax.vjp(function, *everything[:-1])[1](everything[-1])

        _, moved = jax.jvp(gradient, (*inputs, cotangent), tuple(directions))
        return float(sum((g * w).sum() for g, w in zip(moved, weights, strict=True)))
    raise NotSupported(f"{library} has no automatic differentiation")


def compile_function(library: str, function: Callable[..., Any], static: Sequence[str] = ()) -> Callable[..., Any]:
    """The function compiled by its library: ``jax.jit``, or ``torch.compile`` without breaks in the graph.

    ``static`` names the keywords that are no arrays; a new value of one is a new compilation.
    """
    if library == "torch":
        torch = importlib.import_module("torch")
        torch.compiler.reset()  # the limit on recompilations counts those of the clauses before
        quick = torch.compile(function, fullgraph=True, backend="aot_eager")

        def quiet(*args: Any, **keywords: Any) -> Any:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the compiler's advice, several pages of it
                return quick(*args, **keywords)

        return quiet
    if library == "jax":
        return importlib.import_module("jax").jit(function, static_argnames=tuple(static))
    raise NotSupported(f"{library} has no compiler")


def vmap(library: str, function: Callable[..., Any], in_axes: Any) -> Callable[..., Any]:
    """The function over one more axis; ``in_axes`` says which of each argument, None for an argument without it."""
    if library == "torch":
        return importlib.import_module("torch").func.vmap(function, in_dims=in_axes)
    if library == "jax":
        return importlib.import_module("jax").vmap(function, in_axes=in_axes)
    raise NotSupported(f"{library} has no vmap")


def expanded(array: Any, shape: tuple[int, ...]) -> Any:
    """A view of an array in a larger shape, with strides of 0, as the gradient of a sum is one.

    Examples
    --------
    >>> expanded(np.ones((1, 1)), (2, 3)).strides
    (0, 0)
    """
    library = type(array).__module__.partition(".")[0]
    if library == "torch":
        return array.expand(shape)
    return importlib.import_module(LIBRARIES[library]).broadcast_to(array, shape)


def random_states(library: str) -> dict[str, Any]:
    """The states of the global random number generators, by name, comparable; those of the library too."""
    states: dict[str, Any] = {"random": random.getstate(), "numpy.random": repr(_numpy_state())}
    torch = sys.modules.get("torch")
    if torch is not None:
        states["torch"] = torch.get_rng_state().numpy().tobytes()
        if library == "torch" and torch.cuda.is_initialized():
            for n, state in enumerate(torch.cuda.get_rng_state_all()):
                states[f"torch.cuda:{n}"] = state.numpy().tobytes()
    return states


@contextmanager
def other_random_states(seed: int) -> Iterator[None]:
    """The generators seeded otherwise than by the usual 0 of tests, and by Hypothesis: who seeds with it is seen."""
    usual, of_numpy = random.getstate(), np.random.get_state()
    torch = sys.modules.get("torch")
    of_torch = None if torch is None else torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    if torch is not None:
        torch.random.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(usual)
        np.random.set_state(of_numpy)
        if torch is not None:
            torch.set_rng_state(of_torch)


def settings_of(library: str) -> dict[str, Any]:
    """What a library, and NumPy, are set to for the whole process, by name, comparable."""
    found: dict[str, Any] = {"numpy.geterr": np.geterr(), "numpy.geterrcall": np.geterrcall()}
    found["numpy.get_printoptions"] = np.get_printoptions()
    if library == "torch":
        torch = importlib.import_module("torch")
        names = ["get_default_dtype", "get_default_device", "is_grad_enabled", "is_inference_mode_enabled"]
        names += ["get_num_threads", "get_deterministic_debug_mode", "is_deterministic_algorithms_warn_only_enabled"]
        names += ["get_float32_matmul_precision", "is_anomaly_enabled", "is_autocast_enabled"]
        found |= {f"torch.{name}": getattr(torch, name)() for name in names}
        flags = {"cudnn": ("enabled", "benchmark", "deterministic", "allow_tf32"), "cuda.matmul": ("allow_tf32",)}
        for path, fields in flags.items():
            owner = torch.backends
            for part in path.split("."):
                owner = getattr(owner, part)
            found |= {f"torch.backends.{path}.{field}": getattr(owner, field) for field in fields}
        for kernel in ("flash", "mem_efficient", "math", "cudnn"):
            found[f"torch.backends.cuda.{kernel}_sdp"] = getattr(torch.backends.cuda, f"{kernel}_sdp_enabled")()
    if library == "jax":
        config = importlib.import_module("jax").config
        names = ["jax_enable_x64", "jax_default_matmul_precision", "jax_debug_nans", "jax_disable_jit"]
        found |= {name: getattr(config, name) for name in names}
    return found


@contextmanager
def changed_settings(library: str) -> Iterator[None]:
    """Some settings at other values than the usual: who sets one to the usual value is seen to do so."""
    usual = np.get_printoptions()
    with np.errstate(divide="warn", invalid="ignore", over="warn", under="ignore"):
        np.set_printoptions(precision=5)
        try:
            if library != "torch":
                yield
                return
            torch = importlib.import_module("torch")
            dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
            precision = torch.get_float32_matmul_precision()
            torch.set_default_dtype(torch.float32 if dtype == torch.float64 else torch.float64)
            torch.set_num_threads(threads + 1)
            torch.set_float32_matmul_precision("highest" if precision == "high" else "high")
            try:
                with torch.set_grad_enabled(not torch.is_grad_enabled()):
                    yield
            finally:
                torch.set_default_dtype(dtype)
                torch.set_num_threads(threads)
                torch.set_float32_matmul_precision(precision)
        finally:
            np.set_printoptions(**usual)


def make_room(library: str) -> None:
    """Let go of what JAX compiled before, where that is so much that the next compilation may find no memory map."""
    maps = Path("/proc/self/maps")
    if library == "jax" and maps.exists() and maps.read_bytes().count(b"\n") > MAPS:
        importlib.import_module("jax").clear_caches()


def peak_on_device(library: str, device: str | None, call: Callable[[], Any]) -> int | None:
    """Bytes that a call needs at its peak on a device with memory of its own; None where that is the CPU's.

    Raises
    ------
    NotSupported
        If the library does not say.
    """
    if library == "torch" and device is not None and not device.startswith("cpu"):
        torch = importlib.import_module("torch")
        if not device.startswith("cuda"):
            raise NotSupported(f"torch does not say what a call needed on {device}")
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    on_cpu = library != "cupy" and device in (None, "cpu", "CPU_DEVICE")
    if library == "jax":
        jax = importlib.import_module("jax")
        on_cpu = (jax.default_backend() if device is None else device) == "cpu"
    if not on_cpu:
        raise NotSupported(f"{library} does not say what one call needed on its device")
    return None


def _numpy_state() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()
    return (kind, np.asarray(keys).tolist(), *rest)


def _together(output: Any, cotangent: Any) -> tuple[list[Any], list[Any]]:
    """Outputs that depend on something, and their cotangents."""
    if not isinstance(cotangent, tuple):
        return [output], [cotangent]
    if not isinstance(output, tuple) or len(output) != len(cotangent):
        raise TypeError(f"it must give {len(cotangent)} arrays; got {type(output).__name__}")
    return list(output), list(cotangent)


def _put(inputs: Sequence[Any], where: Sequence[int], some: Sequence[Any]) -> list[Any]:
    """The inputs with some of them replaced."""
    found = list(inputs)
    for n, one in zip(where, some, strict=True):
        found[n] = one
    return found
