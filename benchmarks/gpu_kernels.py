"""Targets for the suite: the kernels for GPUs, on a GPU where there is one, else in Triton's or Pallas's interpreter.

    ia-core conform benchmarks.gpu_kernels:torch_triton --profile quick --clause IA-F
    ia-core conform benchmarks.gpu_kernels:jax_pallas --profile quick --clause IA-F

Calls that a kernel declines (float64 where Pallas does not interpret it, a BoxMLP, for Triton the gradient of a bias
that is a matrix) take the path that serves then, and are judged on it. An interpreter takes seconds for calls of some
hundred keys, Pallas's also for each new shape, so few cases are tried in it.
Without a GPU ``torch_flex_knots`` is its score functions within PyTorch's plain definition of ``flex_attention``.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from typing import Any

import numpy as np
import torch

CUDA = torch.cuda.is_available()
if not CUDA:
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported

from ia_core.backends import indirect_attention, use_backend  # noqa: E402
from ia_core.conformance import Implementation  # noqa: E402

from . import flex_on_cpu  # noqa: E402

CLAIMS = {"bias", "bias_broadcast", "mask", "scale", "lse", "grouped", "value_width", "batch_axes", "empty"}
CLAIMS |= {"grad", "bias_grad", "position_bias", "parameter_grad", "lse_grad", "errors", "wide_bias"}
ROUNDED = "the weights are rounded to a half before they meet the values, as the path's name says"


def as_on_a_gpu(convert: Any) -> Any:
    """What the interpreter converts numbers with, but for bfloat16: there it cuts off, and mistakes small numbers."""

    def converted(numbers: Any, given: Any, wanted: Any, mode: Any) -> Any:
        pair = given.name, wanted.name
        if pair == ("fp32", "bf16"):
            whole = torch.from_numpy(np.ascontiguousarray(numbers).view(np.float32).reshape(numbers.shape))
            return whole.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
        if pair == ("bf16", "fp32"):  # the same bits, and zeros behind them
            return numbers.view(np.uint16).astype(np.uint32) << np.uint32(16)
        return convert(numbers, given, wanted, mode)

    return converted


if not CUDA and importlib.util.find_spec("triton") is not None:
    from triton.runtime import interpreter

    interpreter._convert_float = as_on_a_gpu(interpreter._convert_float)


def on(path: str, *arrays: Any, **keywords: Any) -> Any:
    """A call on a path, or on another one if this declines it."""
    on_cpu = path == "torch-flex-knots" and not CUDA
    plainly = flex_on_cpu.by_plain_operations() if on_cpu else contextlib.nullcontext()
    try:
        with use_backend(path), plainly:
            return indirect_attention(*arrays, **keywords)
    except ValueError as error:
        if "IA-X-23" not in str(error):
            raise
    return indirect_attention(*arrays, **keywords)


def _target(path: str, **more: Any) -> Implementation:
    given = {"library": "torch", "device": "cuda" if CUDA else None, "supports": CLAIMS}
    given |= {"dtypes": ("float32", "bfloat16", "float16"), "most_cases": None if CUDA else 4}
    return Implementation(functools.partial(on, path), path, **given | more)


torch_triton = _target("torch-triton")
torch_triton_rounded = _target(
    "torch-triton-rounded",
    arithmetic={"bfloat16": "weights", "float16": "weights"},
    deviations={"IA-P-03": ROUNDED, "IA-P-04": ROUNDED},
)
# JAX places arrays on the GPU by itself where it has one.
jax_pallas = _target(
    "jax-pallas",
    library="jax",
    device=None,
    dtypes=("float32", "float64", "bfloat16", "float16"),
    supports=CLAIMS | {"compile", "vmap", "linear_memory"},
)
torch_flex_knots = _target("torch-flex-knots")
