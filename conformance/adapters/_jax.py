"""JAX: ``jax.nn.dot_product_attention`` in its portable form, ``implementation="xla"``, the default."""

from __future__ import annotations

import functools
from typing import Any

from .._implementation import Implementation

__all__ = ["FACTORIES", "NEEDS", "dot_product_attention"]

# The mask is a finite number, -0.7 of float32's largest, so that a row without a True is a row of equal scores.
MEAN = "a row that the mask empties gives the mean of the values: forbidden scores are -2.4e38, not -inf"
SINGLE = "the softmax is in float32, for float64 as well (a comment in its source; JAX pull request 21371)"
ROUNDED = "the weights are rounded to a half before they meet the values"
NARROW = "the lse is rounded to the dtype of the keys, where the softmax is in float32"
DEVIATIONS = {
    "IA-F-08[bfloat16]": NARROW,
    "IA-F-08[float16]": NARROW,
    "IA-G-04": f"{MEAN}, and the gradient flows to them",
    "IA-G-11": "nan behind the mask reaches gradients: it is multiplied by the weight of 0, and 0 * nan is nan",
    "IA-G-12": "nothing flows through the lse: it goes through stop_gradient, so that its gradient is 0",
    "IA-P-01": SINGLE,
    "IA-P-03": ROUNDED,
    "IA-P-04": ROUNDED,
    "IA-S-01": MEAN,
    "IA-S-02": "a row whose bias is -inf everywhere gives nan",
    "IA-S-03[bfloat16]": f"{MEAN}; the lse is -2.4e38",
    "IA-S-03[float32]": f"{MEAN}; the lse is -2.4e38",
    "IA-S-03[float64]": f"{MEAN}; the lse is -2.4e38",
    "IA-S-06": "nan behind the mask reaches the output: its weight is 0, and 0 * nan is nan",
    "IA-S-13": "no heads raise ZeroDivisionError: the number of query heads is divided by that of key heads",
}


def dot_product_attention() -> Implementation:
    """``jax.nn.dot_product_attention``: one batch axis, values of the keys' shape."""
    return Implementation(
        _attention,
        "jax-dpa",
        library="jax",
        dtypes=("float32", "float64", "float16", "bfloat16"),
        layout="BMHD",
        supports={
            "bias",
            "bias_broadcast",
            "mask",
            "scale",
            "lse",
            "grouped",
            "empty",
            "grad",
            "bias_grad",
            "lse_grad",
            "double_grad",
            "compile",
            "vmap",
        },
        arithmetic={"float64": "float32", "float16": "weights", "bfloat16": "weights"},
        deviations={label: f"{reason} (seen in JAX 0.10.2)" for label, reason in DEVIATIONS.items()},
    )


FACTORIES = {"jax-dpa": dot_product_attention}
NEEDS = {"jax-dpa": ("jax",)}


def _attention(
    query: Any,
    key: Any,
    value: Any,
    *,
    bias: Any = None,
    mask: Any = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Any:
    import jax

    bias, mask = (
        None if array is None else array.reshape((1,) * (4 - array.ndim) + array.shape) for array in (bias, mask)
    )
    # Under jit JAX 0.10.2 refuses float16 on the CPU: only eagerly does it fall back from the product F16_F16_F32.
    attention: Any = jax.nn.dot_product_attention if query.dtype == "float16" else _jitted()
    result = attention(query, key, value, bias, mask, scale=scale, return_residual=return_lse)
    return (result[0], result[1].swapaxes(-1, -2)) if return_lse else result  # (B, M, H) to (B, H, M)


@functools.cache
def _jitted() -> Any:
    import jax

    # One compilation for each new shape, where the operations one by one would have a dozen.
    return jax.jit(jax.nn.dot_product_attention, static_argnames="return_residual")
