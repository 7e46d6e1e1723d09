"""Flax: ``flax.linen.dot_product_attention``."""

from __future__ import annotations

import functools
from typing import Any

from .._implementation import Implementation

__all__ = ["FACTORIES", "NEEDS", "dot_product_attention"]

MEAN = "a row that the mask empties gives the mean of the values: forbidden scores are the least finite number"
ROUNDED = "scores and weights are rounded to a half: its products and its softmax give the dtype of the query"
DEVIATIONS = {
    "IA-G-04": f"{MEAN}, and the gradient flows to them",
    "IA-G-11": "nan behind the mask reaches gradients: it is multiplied by the weight of 0, and 0 * nan is nan",
    "IA-P-03": ROUNDED,
    "IA-P-04": ROUNDED,
    "IA-S-01": MEAN,
    "IA-S-02": "a row whose bias is -inf everywhere gives nan: its softmax is 0 / 0",
    "IA-S-06": "nan behind the mask reaches the output: its weight is 0, and 0 * nan is nan",
}


def dot_product_attention() -> Implementation:
    """``flax.linen.dot_product_attention``: any leading axes, one key head for each query head, no scale to choose."""
    return Implementation(
        _attention,
        "flax",
        library="jax",
        dtypes=("float32", "float64", "float16", "bfloat16"),
        layout="BMHD",
        supports={"bias", "bias_broadcast", "mask", "value_width", "batch_axes", "empty"}
        | {"grad", "bias_grad", "double_grad", "compile", "vmap"},
        arithmetic={"float16": "scores", "bfloat16": "scores"},
        deviations={label: f"{reason} (seen in Flax 0.12)" for label, reason in DEVIATIONS.items()},
    )


FACTORIES = {"flax": dot_product_attention}
NEEDS = {"flax": ("flax", "jax")}


def _attention(query: Any, key: Any, value: Any, *, bias: Any = None, mask: Any = None) -> Any:
    return _jitted()(query, key, value, bias, mask)


@functools.cache
def _jitted() -> Any:
    import flax.linen
    import jax

    # One compilation for each new shape, where the operations one by one would have a dozen.
    return jax.jit(flax.linen.dot_product_attention)
