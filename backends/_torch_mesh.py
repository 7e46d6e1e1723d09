"""PyTorch: tensors spread over a device mesh (``DTensor``), of which each rank computes its own part.

Heads, leading axes and queries do not depend on each other. Where they are split, and everything else lies so that a
rank has what its part needs, the fast path of plain tensors runs on each rank's tensors and nothing travels; backward
the gradients of what ranks hold whole are left to be summed, which ``DTensor`` does where they are asked for.
"""

from __future__ import annotations

from typing import Any

from .._checks import Call, check_call
from .._position_bias import PositionBias
from . import _registry
from ._chunked import some_heads

__all__ = ["attend", "declines"]


def declines(call: Call, arrays: dict[str, Any], return_lse: bool) -> str | None:
    """Why this path does not take the call, or None."""
    query = arrays["query"]
    # The class is not imported for this: PyTorch may have been built without it.
    spread = {name: getattr(array, "device_mesh", None) is not None for name, array in arrays.items()}
    if not any(spread.values()):
        return "`query` is not spread over a mesh"
    if not all(spread.values()):
        which = {is_spread: name for name, is_spread in reversed(spread.items())}
        raise TypeError(
            f"all tensors of a call must be spread over a mesh, or none; `{which[True]}` is a DTensor, "
            f"`{which[False]}` is not [IA-X-02]"
        )
    for name, array in arrays.items():
        if array.device_mesh != query.device_mesh:
            return f"`{name}` is spread over another mesh than `query`"
    from torch.distributed.tensor import Replicate, Shard

    rank = 2 if "bias.f.x.w1" in arrays else 1
    axes = [placement.dim for placement in query.placements if placement.is_shard()]
    if len(set(axes)) < len(axes):
        return "an axis of `query` is split along two axes of the mesh"
    for at, placement in enumerate(query.placements):
        if not isinstance(placement, Replicate | Shard) or placement == Shard(query.ndim - 1):
            return f"`query` is {placement}"
        for name, array in arrays.items():
            wanted, found = _wanted(name, array, query, at, call.Hk, rank), array.placements[at]
            # What is no key and no value may be whole: a rank cuts its part of it.
            if found != wanted and (name in ("key", "value") or not found.is_replicate()):
                return f"`{name}` is {found} where `query` is {placement}"
            if wanted.is_shard() and array.shape[wanted.dim] % array.device_mesh.size(at):
                return f"`{name}` has parts of different sizes"
    return None


def attend(call: Call, query: Any, key: Any, value: Any, bias: Any, mask: Any) -> tuple[Any, Any]:
    """Output and lse of a checked call, in the working dtype."""
    from torch.distributed.tensor import DTensor

    rank = bias.f.query_rank if isinstance(bias, PositionBias) else 1

    def local(name: str, array: Any) -> Any:
        if hasattr(array, "_fields"):
            return type(array)(*(local(f"{name}.{part}", getattr(array, part)) for part in array._fields))
        return None if array is None else _local(name, array, query, call.Hk, rank)

    q, k, v, mask = (local(*pair) for pair in (("query", query), ("key", key), ("value", value), ("mask", mask)))
    bias = local("bias", bias)
    if isinstance(bias, PositionBias) and bias.f.heads > 1 and q.shape[-3] < call.H:
        h0 = _first_head(query, q.shape[-3])
        bias = bias._replace(f=some_heads(bias.f, h0, h0 + q.shape[-3]))
    its_call = check_call(q, k, v, bias, mask, call.scale)
    path = _registry.fastest(its_call, _registry.named(q, k, v, bias, mask), True)
    parts = _registry.load(path).attend(its_call, q, k, v, bias, mask)
    output, lse = (DTensor.from_local(part, query.device_mesh, query.placements, run_check=False) for part in parts)
    return output, lse


def _wanted(name: str, array: Any, query: Any, at: int, Hk: int, rank: int) -> Any:
    """How an operand lies along an axis of the mesh, for each rank to have what its part of the query needs.

    ``rank`` is how many axes a query's position ends with: that of the queries, of boxes one more.
    """
    from torch.distributed.tensor import Replicate, Shard

    placement = query.placements[at]
    if not isinstance(placement, Shard) or name.startswith(("bias.f.", "bias.value_positions.")):
        return placement if name == "query" else Replicate()
    axis = placement.dim - query.ndim  # from behind: heads -3, rows -2
    if name in ("key", "value") and (axis == -2 or (axis == -3 and Hk == 1)):
        return Replicate()
    if name in ("bias.query_positions", "bias.value_positions"):
        if axis == -3 or (axis == -2 and name == "bias.value_positions"):
            return Replicate()
        behind = rank if name == "bias.query_positions" else 1
        axis = -behind if axis == -2 else axis + 3 - behind
    if array.ndim < -axis or array.shape[axis] == 1:
        return Replicate()
    return Shard(array.ndim + axis)


def _local(name: str, array: Any, query: Any, Hk: int, rank: int) -> Any:
    """A rank's part of an operand."""
    from torch.distributed.tensor import Partial

    placements = [_wanted(name, array, query, at, Hk, rank) for at in range(len(query.placements))]
    of_gradient = [
        Partial() if wanted.is_replicate() and its.is_shard() else wanted
        for wanted, its in zip(placements, query.placements, strict=True)
    ]
    return array.redistribute(placements=placements).to_local(grad_placements=of_gradient)


def _first_head(query: Any, heads: int) -> int:
    """The first of this rank's heads."""
    (at,) = [at for at, its in enumerate(query.placements) if its.is_shard(query.ndim - 3)]
    return int(query.device_mesh.get_local_rank(at) * heads)
