"""Our own functions as implementations under test: the reference and the fast paths, one for each array library."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import ia_core

from ._implementation import BASIC, Implementation
from ._libraries import AUTODIFF, LIBRARIES

__all__ = ["DTYPES", "EVERYTHING", "fast_paths", "references"]

EVERYTHING = BASIC | {"grad", "bias_grad", "position_bias", "wide_bias", "errors"}
# What a library's automatic differentiation and its compiler add.
TRANSFORMS = {"parameter_grad", "lse_grad", "double_grad", "compile", "vmap"}
DTYPES = ("float64", "float32", "float16", "bfloat16")


def references() -> dict[str, Callable[[], Implementation]]:
    """``reference-numpy`` and so on: ``ia_core.indirect_attention`` on the arrays of each library.

    Where the library differentiates, its autodiff of the reference is judged; elsewhere the closed form is.
    """
    return {f"reference-{library}": partial(_reference, library) for library in LIBRARIES}


def fast_paths(function: Callable[..., Any]) -> dict[str, Callable[[], Implementation]]:
    """``ia-numpy`` and so on: the dispatching function, which arrives as an argument, on each of its libraries."""
    return {f"ia-{library}": partial(_fast, function, library) for library in ("numpy", "torch", "jax", "cupy")}


def _reference(library: str) -> Implementation:
    return Implementation(
        ia_core.indirect_attention,
        f"reference-{library}",
        library=library,
        dtypes=DTYPES[:2] if library == "array_api_strict" else DTYPES,
        supports=EVERYTHING | (TRANSFORMS if library in AUTODIFF else set()),
        vjp=None if library in AUTODIFF else _closed_form,
        target=f"reference-{library}",
    )


def _fast(function: Callable[..., Any], library: str) -> Implementation:
    supports = EVERYTHING | TRANSFORMS if library in AUTODIFF else EVERYTHING - {"grad", "bias_grad"}
    supports = supports | ({"linear_memory"} if library in ("numpy", "torch") else set())
    if library == "torch":  # whose fused kernel has no second derivative
        supports = supports - {"double_grad"}
    name = f"ia-{library}"
    return Implementation(function, name, library=library, dtypes=DTYPES, supports=supports, target=name)


def _closed_form(cotangent: Any, query: Any, key: Any, value: Any, **keywords: Any) -> list[Any]:
    return [g for g in ia_core.indirect_attention_vjp(query, key, value, cotangent, **keywords) if g is not None]
