"""Keras: ``keras.ops.dot_product_attention``, on the one backend that a process can have.

Keras reads KERAS_BACKEND when it is imported. Where that is not set, the first call decides: each adapter imports
Keras on its own backend, and the other two then refuse to be found in that process. ``numpy`` is the backend with an
implementation of its own; ``jax`` and ``torch`` pass the call on to their libraries.
"""

from __future__ import annotations

import functools
import math
import os
import sys
from typing import Any

from .._implementation import Implementation
from .._libraries import compile_function

__all__ = ["FACTORIES", "NEEDS", "backend", "dot_product_attention", "imported", "open_backends"]

MEAN = "a row that the mask empties gives the mean of the values: forbidden scores are -2.4e38, not -inf"
SINGLE = "float64 is not among the dtypes that Keras promotes to: the output is float32"
POISON = "nan behind the mask reaches the output: its weight is 0, and 0 * nan is nan"
POISONED = "nan behind the mask reaches gradients: it is multiplied by the weight of 0, and 0 * nan is nan"
ROUNDED = "the weights are rounded to a half before they meet the values"
FUSED = "PyTorch's fused kernel rounds the exponentials to a half before they meet the values"
NO_ANSWER = "a row whose bias is -inf everywhere gives nan"
SUMS = "einsum accumulates rows of values in float16: the mean of 4096 times 1.5 stops at 1"
EVERYWHERE = {"IA-S-01": MEAN, "IA-S-06": POISON}
NO_GRADIENT = {"IA-G-04": f"{MEAN}, and the gradient flows to them", "IA-G-11": POISONED}
DEVIATIONS = {
    "numpy": EVERYWHERE
    | {
        "IA-F-10[float64]": SINGLE,
        "IA-P-01": SINGLE,
        "IA-P-03": SUMS,
        "IA-P-04": ROUNDED,
        "IA-P-05[float16]": SUMS,
        "IA-P-08": "products beyond 65504 are inf in float16, and the output is nan",
        "IA-S-02": NO_ANSWER,
        "IA-S-04": "N = 0 raises ValueError: it takes the largest score of every row",
    },
    "jax": EVERYWHERE
    | NO_GRADIENT
    | {
        "IA-P-03": ROUNDED,
        "IA-P-04": ROUNDED,
        "IA-S-02": NO_ANSWER,
        "IA-S-13": "no heads raise ZeroDivisionError: the number of query heads is divided by that of key heads",
    },
    "torch": EVERYWHERE
    | NO_GRADIENT
    | {"IA-P-03": FUSED, "IA-P-04": FUSED, "IA-S-07": "PyTorch's fused kernel gives 0 for a query that is nan"},
}
ARITHMETIC = {
    "numpy": {"float64": "float32", "float16": "own", "bfloat16": "weights"},
    "jax": {"float16": "weights", "bfloat16": "weights"},
    "torch": {"float16": "weights", "bfloat16": "weights"},
}
# On numpy the product of grouped heads raises, though the documentation of ops.dot_product_attention has them.
CLAIMS = {
    "numpy": {"value_width"},
    "jax": {"grouped", "grad", "bias_grad"},
    "torch": {"grouped", "value_width", "grad", "bias_grad"},
}


def backend() -> str:
    """The backend that Keras has in this process, or will have unless another adapter is called first."""
    loaded = sys.modules.get("keras")
    return os.environ.get("KERAS_BACKEND", "numpy") if loaded is None else loaded.config.backend()


def open_backends() -> list[str]:
    """The backends on which Keras can be judged from here, each in a process of its own."""
    return [os.environ["KERAS_BACKEND"]] if "KERAS_BACKEND" in os.environ else list(DEVIATIONS)


def dot_product_attention(name: str) -> Implementation:
    """``keras.ops.dot_product_attention`` on a backend; one batch axis."""
    _refuse_another(name)
    return Implementation(
        functools.partial(_attention, name),
        f"keras-{name}",
        library=name,
        # What float64 becomes is shown on numpy; elsewhere it would leave nothing to say about gradients.
        dtypes=("float32", *(["float64"] if name == "numpy" else []), "float16", "bfloat16"),
        layout="BMHD",
        supports={"bias", "bias_broadcast", "mask", "scale", "empty"} | CLAIMS[name],
        deviations={label: f"{reason} (seen in Keras 3.15)" for label, reason in DEVIATIONS[name].items()},
        arithmetic=ARITHMETIC[name],
    )


@functools.cache
def imported(name: str) -> Any:
    """Keras, imported on a backend, with the environment left as it was."""
    _refuse_another(name)
    chosen = "KERAS_BACKEND" in os.environ
    os.environ.setdefault("KERAS_BACKEND", name)
    try:
        import keras
    finally:
        if not chosen:  # programs that this one starts decide for themselves
            del os.environ["KERAS_BACKEND"]
    return keras


def _refuse_another(name: str) -> None:
    if "keras" in sys.modules or "KERAS_BACKEND" in os.environ:
        there = backend()
        if there != name:
            raise ValueError(
                f"`keras-{name}` needs Keras on {name}, and in this process it is on {there}: "
                f"set KERAS_BACKEND={name} before Python starts [IA-X-21]"
            )


FACTORIES = {f"keras-{name}": functools.partial(dot_product_attention, name) for name in DEVIATIONS}
NEEDS = {f"keras-{name}": ("keras", name) for name in DEVIATIONS}


def _attention(
    name: str, query: Any, key: Any, value: Any, *, bias: Any = None, mask: Any = None, **keywords: Any
) -> Any:
    ops = imported(name).ops
    if bias is not None and mask is not None and name == "torch":  # which takes one of the two
        bias, mask = ops.where(mask, bias, -math.inf), None
    # On torch one axis alone raises, as in PyTorch; leading axes of 1 change nothing.
    bias, mask = (
        None if array is None else array.reshape((1,) * (4 - array.ndim) + tuple(array.shape)) for array in (bias, mask)
    )
    if name == "jax" and query.dtype != "float16":  # which JAX 0.10.2 takes on the CPU only where nothing is compiled
        return _jitted()(query, key, value, bias=bias, mask=mask, **keywords)
    return ops.dot_product_attention(query, key, value, bias=bias, mask=mask, **keywords)


@functools.cache
def _jitted() -> Any:
    # As Keras compiles its models on JAX; one operation after the other, each is traced on its own in every call.
    return compile_function("jax", imported("jax").ops.dot_product_attention)
