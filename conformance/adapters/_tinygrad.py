"""tinygrad: ``Tensor.scaled_dot_product_attention`` on the device PYTHON, which needs no compiler."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._implementation import Implementation
from .._libraries import numpy_dtype
from ._joined import joined

__all__ = ["FACTORIES", "NEEDS", "attention"]

EMPTY = "a row that may attend to nothing gives nan: its softmax is 0 / 0"
DEVIATIONS = {
    "IA-G-04": f"{EMPTY}, and so do gradients through it",
    "IA-G-11": "nan behind the mask reaches gradients: it is multiplied by the weight of 0, and 0 * nan is nan",
    "IA-P-04": "scores and weights are rounded to bfloat16: the scores are converted to it before the softmax",
    "IA-S-01": EMPTY,
    "IA-S-02": EMPTY,
    "IA-S-06": "nan behind the mask reaches the output: nan + -inf and 0 * nan are nan",
}


def attention() -> Implementation:
    """Every kernel is interpreted in Python, number by number: right, and slow. There is no argument for the scale.

    Not claimed: float16, in which this device raises for 16 keys and for 32 (RuntimeError: UOp verification
    failed; seen in tinygrad 0.14).
    """
    return Implementation(
        _attention,
        "tinygrad",
        dtypes=("float32", "float64", "bfloat16"),
        supports={
            "bias",
            "bias_broadcast",
            "mask",
            "grouped",
            "value_width",
            "batch_axes",
            "empty",
            "grad",
            "bias_grad",
        },
        arithmetic={"bfloat16": "scores"},
        deviations={label: f"{reason} (seen in tinygrad 0.14)" for label, reason in DEVIATIONS.items()},
        vjp=_vjp,
        few_shapes=True,  # every new shape is scheduled and lowered anew
        most_cases=2,
    )


FACTORIES = {"tinygrad": attention}
NEEDS = {"tinygrad": ("tinygrad",)}


def _attention(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, *, bias: Any = None, mask: Any = None
) -> np.ndarray:
    both = joined(bias, mask, boolean=True)
    with _device():
        placed = [None if one is None else _placed(one) for one in (query, key, value, both)]
        return _received(_call(*placed))


def _vjp(
    cotangent: np.ndarray,
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    *,
    bias: Any = None,
    mask: Any = None,
) -> list[np.ndarray]:
    with _device():
        leaves = [_placed(one) for one in (query, key, value, bias) if one is not None]
        both = masked = None if mask is None else _placed(mask)
        if bias is not None:
            both = leaves[3] if masked is None else masked.where(leaves[3], -float("inf"))
        output = _call(leaves[0], leaves[1], leaves[2], both)
        found = output.gradient(*leaves, gradient=_placed(cotangent))
        return [_received(one) for one in found]


def _device() -> Any:
    """The device for this call alone: asked for none, tinygrad looks for one and writes it into the environment."""
    from tinygrad.helpers import Context

    return Context(DEV="PYTHON")


def _call(query: Any, key: Any, value: Any, attn_mask: Any) -> Any:
    grouped = query.shape[-3] != key.shape[-3]
    return query.scaled_dot_product_attention(key, value, attn_mask=attn_mask, enable_gqa=grouped)


def _placed(array: np.ndarray) -> Any:
    from tinygrad import Tensor, dtypes

    if array.dtype.name == "bfloat16":  # NumPy's is unknown to tinygrad; float32 holds it exactly
        return Tensor(array.astype(np.float32)).cast(dtypes.bfloat16).realize()
    return Tensor(np.ascontiguousarray(array)).realize()


def _received(tensor: Any) -> np.ndarray:
    from tinygrad import dtypes

    name = {"half": "float16", "float": "float32", "double": "float64", "__bf16": "bfloat16"}[tensor.dtype.name]
    return (tensor.cast(dtypes.float32) if name == "bfloat16" else tensor).numpy().astype(numpy_dtype(name))
