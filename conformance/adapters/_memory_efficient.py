"""memory-efficient-attention 0.1.3: known to be wrong for long inputs, which the suite has to find.

Its pieces of the keys (4096) and of the queries (1024) are cut as JAX's ``dynamic_slice`` cuts them: the last one,
where it would reach beyond the end, starts earlier. Keys are then counted twice, and rows come back that nobody asked
for.
"""

from __future__ import annotations

import functools
from typing import Any

from .._implementation import Implementation

__all__ = ["FACTORIES", "NEEDS", "attention"]

# What is not the mistake that it stands here for.
DEVIATIONS = {
    "IA-S-01": "a row that the mask empties gives the mean of the values, or nan in float64, where forbidden scores "
    "are -inf: the least float64 does not fit the float32 that holds it",
    "IA-S-02": "a row whose bias is -inf everywhere gives nan: its softmax is 0 / 0",
    "IA-S-06": "nan behind the mask reaches the output: its weight is 0, and 0 * nan is nan",
}


def attention() -> Implementation:
    """``efficient_dot_product_attention`` at its default sizes of pieces, on PyTorch."""
    return Implementation(
        _attention,
        "memory-efficient-attention",
        library="torch",
        dtypes=("float32", "float64"),
        layout="BMHD",
        supports={"bias", "mask", "value_width", "batch_axes"},
        deviations={label: f"{reason} (seen in 0.1.3)" for label, reason in DEVIATIONS.items()},
    )


FACTORIES = {"memory-efficient-attention": attention}
NEEDS = {"memory-efficient-attention": ("memory_efficient_attention", "torch")}


def _attention(query: Any, key: Any, value: Any, *, bias: Any = None, mask: Any = None) -> Any:
    return _function()(query, key, value, mask=mask, bias=bias)


@functools.cache
def _function() -> Any:
    from memory_efficient_attention import efficient_dot_product_attention_pt

    return efficient_dot_product_attention_pt
