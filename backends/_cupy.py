"""CuPy: query tiles in place of one M x N matrix."""

from __future__ import annotations

from typing import Any

import cupy

from .._checks import Call
from ._tiled import attend_tiled, rows_within

__all__ = ["attend", "declines"]

# Chosen by size and not by measurement, which awaits a device: 256 MiB of float32 scores and a few copies of
# them fit on one, and are work enough for all of it, so that the launches do not count.
SCORES_PER_TILE = 2**26
LEAST_ROWS = 64


def declines(call: Call, arrays: dict[str, Any], return_lse: bool) -> str | None:
    """Why this path does not take the call, or None."""
    for name, array in arrays.items():
        if type(array) is not cupy.ndarray:
            return f"`{name}` is a {type(array).__name__}, which may compute in its own way"
    return None


def attend(call: Call, query: Any, key: Any, value: Any, bias: Any, mask: Any) -> tuple[Any, Any]:
    """Output and lse of a checked call, in the working dtype."""
    rows = rows_within(call, SCORES_PER_TILE, LEAST_ROWS)
    return attend_tiled(call, query, key, value, bias, mask, rows=rows)
