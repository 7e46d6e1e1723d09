"""The reference itself as implementations under test, one for each array library."""

from __future__ import annotations

from typing import Any

import ia_core

from ._implementation import BASIC, Implementation

__all__ = ["EVERYTHING", "reference"]

EVERYTHING = BASIC | {"grad", "position_bias", "errors"}
DTYPES = ("float64", "float32", "float16", "bfloat16")


def reference(library: str) -> Implementation:
    """``ia_core.indirect_attention`` on the arrays of a library.

    Where the library differentiates, its autodiff of the reference is judged; elsewhere the closed form is.
    """
    closed_form = None if library in ("torch", "jax") else _closed_form
    name = f"reference-{library}"
    return Implementation(
        ia_core.indirect_attention,
        name,
        library=library,
        dtypes=DTYPES if library != "array_api_strict" else DTYPES[:2],
        supports=EVERYTHING,
        vjp=closed_form,
        target=name,
    )


def _closed_form(cotangent: Any, query: Any, key: Any, value: Any, **keywords: Any) -> list[Any]:
    return [g for g in ia_core.indirect_attention_vjp(query, key, value, cotangent, **keywords) if g is not None]
