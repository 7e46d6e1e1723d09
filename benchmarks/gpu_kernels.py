"""Targets for the suite: the kernels for GPUs, on a GPU where there is one, else in Triton's interpreter.

    ia-core conform benchmarks.gpu_kernels:torch_triton --profile quick --clause IA-F

Calls that a kernel declines (float64, a BoxMLP, the gradient of a bias that is a matrix) take the path that serves
then, and are judged on it. The interpreter takes seconds for calls of some hundred keys, so few cases are tried in it.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import torch

CUDA = torch.cuda.is_available()
if not CUDA:
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported

from ia_core.backends import indirect_attention, use_backend  # noqa: E402
from ia_core.conformance import Implementation  # noqa: E402

CLAIMS = {"bias", "bias_broadcast", "mask", "scale", "lse", "grouped", "value_width", "batch_axes", "empty"}
CLAIMS |= {"grad", "bias_grad", "position_bias", "parameter_grad", "lse_grad", "errors", "wide_bias"}
ROUNDED = "the weights are rounded to a half before they meet the values, as the path's name says"


def on(path: str, *arrays: Any, **keywords: Any) -> Any:
    """A call on a path, or on another one if this declines it."""
    try:
        with use_backend(path):
            return indirect_attention(*arrays, **keywords)
    except ValueError as error:
        if "IA-X-23" not in str(error):
            raise
    return indirect_attention(*arrays, **keywords)


def _target(path: str, **more: Any) -> Implementation:
    return Implementation(
        functools.partial(on, path),
        path,
        library="torch",
        device="cuda" if CUDA else None,
        dtypes=("float32", "bfloat16", "float16"),
        supports=CLAIMS,
        most_cases=None if CUDA else 4,
        **more,
    )


torch_triton = _target("torch-triton")
torch_triton_rounded = _target(
    "torch-triton-rounded",
    arithmetic={"bfloat16": "weights", "float16": "weights"},
    deviations={"IA-P-03": ROUNDED, "IA-P-04": ROUNDED},
)
