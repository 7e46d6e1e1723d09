"""Keras: ``keras.ops.dot_product_attention``, on the one backend that a process can have.

Keras reads KERAS_BACKEND when it is imported. Where that is not set, it is imported on ``numpy``, the backend with an
implementation of its own; ``jax`` and ``torch`` pass the call on to their libraries.
"""

from __future__ import annotations

import functools
import math
import os
import sys
from typing import Any

from .._implementation import Implementation

__all__ = ["FACTORIES", "NEEDS", "backend", "dot_product_attention", "imported"]

MEAN = "a row that the mask empties gives the mean of the values: forbidden scores are -2.4e38, not -inf"
SINGLE = "float64 is not among the dtypes that Keras promotes to: the output is float32"
POISON = "nan behind the mask reaches the output: its weight is 0, and 0 * nan is nan"
ROUNDED = "the weights are rounded to a half before they meet the values"
FUSED = "PyTorch's fused kernel rounds the exponentials to a half before they meet the values"
EVERYWHERE = {"IA-P-01": SINGLE, "IA-S-01": MEAN, "IA-S-06": POISON}
NO_GRADIENT = {"IA-G-04": f"{MEAN}, and the gradient flows to them", "IA-G-05": SINGLE}
DEVIATIONS = {
    "numpy": EVERYWHERE
    | {
        "IA-P-03": "einsum accumulates rows of values in float16: the mean of 4096 times 1.5 stops at 1",
        "IA-P-04": ROUNDED,
        "IA-S-02": "a row whose bias is -inf everywhere gives nan",
        "IA-S-04": "N = 0 raises ValueError: it takes the largest score of every row",
    },
    "jax": EVERYWHERE
    | NO_GRADIENT
    | {"IA-P-03": ROUNDED, "IA-P-04": ROUNDED, "IA-S-02": "a row whose bias is -inf everywhere gives nan"},
    "torch": EVERYWHERE
    | NO_GRADIENT
    | {"IA-P-03": FUSED, "IA-P-04": FUSED, "IA-S-07": "PyTorch's fused kernel gives 0 for a query that is nan"},
}
# On numpy the product of grouped heads raises, though the documentation of ops.dot_product_attention has them.
CLAIMS = {"numpy": {"value_width"}, "jax": {"grouped", "grad"}, "torch": {"grouped", "value_width", "grad"}}


def backend() -> str:
    """The backend that Keras has in this process, or will have when an adapter imports it."""
    loaded = sys.modules.get("keras")
    return os.environ.get("KERAS_BACKEND", "numpy") if loaded is None else loaded.config.backend()


def dot_product_attention(name: str) -> Implementation:
    """``keras.ops.dot_product_attention`` on a backend; one batch axis."""
    if backend() != name:
        raise ValueError(
            f"`keras-{name}` needs Keras on {name}, and in this process it is on {backend()}: "
            f"set KERAS_BACKEND={name} before Python starts [IA-X-21]"
        )
    return Implementation(
        _attention,
        f"keras-{name}",
        library=name,
        dtypes=("float32", "float64", "float16", "bfloat16"),
        layout="BMHD",
        supports={"bias", "bias_broadcast", "mask", "scale", "empty"} | CLAIMS[name],
        deviations={label: f"{reason} (seen in Keras 3.15)" for label, reason in DEVIATIONS[name].items()},
    )


@functools.cache
def imported() -> Any:
    """Keras, imported on :func:`backend`, with the environment left as it was."""
    chosen = "KERAS_BACKEND" in os.environ
    os.environ.setdefault("KERAS_BACKEND", backend())
    try:
        import keras
    finally:
        if not chosen:  # programs that this one starts decide for themselves
            del os.environ["KERAS_BACKEND"]
    return keras


FACTORIES = {f"keras-{name}": functools.partial(dot_product_attention, name) for name in DEVIATIONS}
NEEDS = {f"keras-{name}": ("keras", name) for name in DEVIATIONS}


def _attention(query: Any, key: Any, value: Any, *, bias: Any = None, mask: Any = None, **keywords: Any) -> Any:
    ops = imported().ops
    if bias is not None and mask is not None and backend() == "torch":  # which takes one of the two
        bias, mask = ops.where(mask, bias, -math.inf), None
    # On torch one axis alone raises, as in PyTorch; leading axes of 1 change nothing.
    bias, mask = (
        None if array is None else array.reshape((1,) * (4 - array.ndim) + tuple(array.shape)) for array in (bias, mask)
    )
    return ops.dot_product_attention(query, key, value, bias=bias, mask=mask, **keywords)
