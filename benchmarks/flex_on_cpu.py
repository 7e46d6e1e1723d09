"""``torch-flex-knots`` on the CPU with gradients and the lse, which compiled ``flex_attention`` does not have there.

The score functions, and what PyTorch derives from them, are those of a GPU; the products and sums around them are
PyTorch's own definition of the operator by plain operations, which holds the scores as a matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch._higher_order_ops.flex_attention import flex_attention
from torch.nn.attention.flex_attention import _create_empty_block_mask

from ia_core.backends import _torch_flex

__all__ = ["by_plain_operations"]

LOG_2 = 0.6931471805599453


def _computed(arrays: list[Any], kind: str, tables: list[Any], masked: bool, scale: float) -> tuple[Any, Any]:
    q, k, v = arrays
    score = _torch_flex.score_function(kind, masked)
    unmasked = _create_empty_block_mask(q, k).as_tuple()
    output, lse, _ = flex_attention(q, k, v, score, unmasked, scale, {}, tuple(tables), ())
    return output, lse * LOG_2


@contextmanager
def by_plain_operations() -> Iterator[None]:
    """Let the path take what it declines on the CPU, and compute without a compiler."""
    before = _torch_flex._compiled, _torch_flex.why_not_with
    _torch_flex._compiled = lambda: _computed
    _torch_flex.why_not_with = lambda kind, moving, return_lse: None
    try:
        yield
    finally:
        _torch_flex._compiled, _torch_flex.why_not_with = before
