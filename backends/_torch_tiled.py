"""PyTorch without its fused kernel: the specification's arithmetic over query tiles, for what ``_torch`` declines.

It runs on every device, gives the lse, and can be differentiated any number of times and in both modes. A backward
pass computes the scores of each tile anew, so that they need not be kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from .._checks import Call
from .._position_bias import PositionBias
from . import _torch
from ._tiled import attend_tiled

__all__ = ["attend", "declines"]

# Measured on two cores, float32, 8 heads, N of 1024 and 2048: 64 to 256 rows are the fastest without gradients;
# with them fewer rows are slower, since every slice of the queries has a gradient of the whole size.
TILE_ROWS = 256
# Off the CPU by memory and not by time: what a tile takes grows by less than IA-R-02 allows.
OTHER_ROWS = 128


def declines(call: Call, arrays: dict[str, Any], return_lse: bool) -> str | None:
    """Why this path does not take the call, or None."""
    return _torch.has_own_rules(arrays)


def attend(call: Call, query: Any, key: Any, value: Any, bias: Any, mask: Any) -> tuple[Any, Any]:
    """Output and lse of a checked call, in the working dtype."""
    dense = bias is not None and not isinstance(bias, PositionBias)
    # The gradient of a dense bias is as large as the scores, and every slice would make one of its own.
    rows = max(1, call.M) if dense and bias.requires_grad else _rows(query)
    with _torch.own_precision(query):
        return attend_tiled(call, query, key, value, bias, mask, rows=rows, each=_recomputed)


def _rows(query: Any) -> int:
    return TILE_ROWS if query.device.type == "cpu" else OTHER_ROWS


def _recomputed(attend_rows: Any, *arguments: Any) -> Any:
    # A trace has its own ways to decide what it keeps, and what a transform carries cannot be computed anew behind it.
    kept = torch.compiler.is_compiling() or not torch.is_grad_enabled()
    if kept or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return attend_rows(*arguments)
    return checkpoint(attend_rows, *arguments, use_reentrant=False, preserve_rng_state=False)
