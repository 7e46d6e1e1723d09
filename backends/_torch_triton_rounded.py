"""PyTorch on a GPU: the Triton kernel with weights rounded to halves before they meet the values.

So do the fused kernels of PyTorch in halves, and IA-P-03 and IA-P-04 do not allow it: nothing takes this path that does
not ask for it. In float32 it is ``_torch_triton``.
"""

from __future__ import annotations

from typing import Any

from .._checks import Call
from . import _torch_triton

__all__ = ["attend", "declines"]

declines = _torch_triton.declines


def attend(call: Call, query: Any, key: Any, value: Any, bias: Any, mask: Any) -> tuple[Any, Any]:
    """Output, in the dtype of the query, and lse of a checked call."""
    return _torch_triton.attend_in_parts(call, query, key, value, bias, mask, rounded=True)
