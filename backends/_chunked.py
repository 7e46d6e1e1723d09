"""Attention over arrays in chunks: what the paths of Dask and Cubed share.

A pair of a query block and a key block gives one partial state (``AttentionState``), and the states of a query block
merge in a tree. No array of M x N is ever a node of the graph, and keys stay in the blocks that they came in. A bias
that is a function of positions is evaluated for each pair of blocks.

=================  =========================  ==============================================
operand            indices                    its block
=================  =========================  ==============================================
query              b..., h, i, (D)            (..., H of the block, m, D)
key, value         b..., h, j, (D or Dv)      (..., Hk of the block, n, D or Dv)
bias, mask         the last of b..., h, i, j  as far as they have these axes
positions          b..., i or j               of the block's queries or keys
parameters of f    none that is split         whole, in every block
states             b..., h, i, j, v           (..., H of the block, m, 1, Dv + 2)
=================  =========================  ==============================================

A state is packed into one array: behind the Dv columns of the output stand top and low, which add up to the lse.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from .._arrays import Array, array_namespace
from .._attention import prepare
from .._bias import BoxMLP, EdgeMLP, LinearOffset, OffsetMLP, OffsetTable
from .._checks import Call, check_call
from .._piecewise import PiecewiseLinear
from .._position_bias import PositionBias
from .._positions import Grid
from .._state import AttentionState
from . import _registry
from ._relative import RelativeState, absolute, merge_relative, relative_state
from ._tiled import rows_within, slab, tiles
from ._trees import build, classes, leaves

__all__ = [
    "COLUMNS",
    "HEAD_AXES",
    "Blocks",
    "block_state",
    "merge_packed",
    "plan",
    "some_heads",
    "unpacked",
    "why_not_chunked",
]

# Of a packed state behind those of the output.
COLUMNS = 2
# From this lse on a block is computed again, with its lse in two numbers.
LARGE = 1000.0
# A tile of that: small beside a block.
SCORES_PER_TILE, LEAST_ROWS = 2**19, 64

# Of the arrays of each bias function, the axis that counts heads.
HEAD_AXES: dict[type, dict[str, int]] = {
    OffsetMLP: {"w2": -1, "b2": -1},
    EdgeMLP: {"w2": -1, "b2": -1},
    OffsetTable: {"values": 0},
    LinearOffset: {"slopes": 0},
    PiecewiseLinear: {"slopes": -1, "intercepts": -1},
}


class Layout(NamedTuple):
    """What a block's function must know besides its arrays; travels to other processes."""

    scale: float
    has_mask: bool
    has_bias: bool
    # None for a bias that is an array: how many arrays f and the value positions have, and the classes to build.
    function: Any = None
    grid: bool = False
    split_heads: bool = False


class Blocks(NamedTuple):
    """A call as operands of a blockwise map.

    Attributes
    ----------
    operands : list of (array, indices)
        In the order in which :func:`block_state` takes their blocks.
    out : tuple of str
        Indices of the states: leading axes, ``h``, ``i``, ``j``, ``v``.
    layout : Layout
    """

    operands: list[tuple[Any, tuple[str, ...]]]
    out: tuple[str, ...]
    layout: Layout

    @property
    def axis(self) -> int:
        """The axis of the states along which they merge."""
        return len(self.out) - 2


def why_not_chunked(call: Call, arrays: dict[str, Any]) -> str | None:
    """Why arrays in chunks are left to the reference, or None: sizes that are not known."""
    for name, array in arrays.items():
        if any(size != size for axis in array.chunks for size in axis):
            return f"`{name}` has chunks of unknown size"
    return None


def plan(call: Call, query: Any, key: Any, value: Any, bias: Any, mask: Any, numbers: Any) -> Blocks:
    """The operands of a checked call whose chunks line up.

    Parameters
    ----------
    numbers : callable
        ``numbers(chunks)`` gives 0, 1, 2, ... as an array in these chunks.

    Raises
    ------
    ValueError
        If chunks do not line up, or an axis that may not be split is (IA-X-25).
    """
    batch = tuple(f"b{n}" for n in range(len(call.batch)))
    chunks = dict(zip((*batch, "h", "i"), query.chunks[:-1], strict=True)) | {"j": key.chunks[-2]}
    names = dict(zip(batch, (f"axis {n}" for n in range(len(batch))), strict=True)) | {"h": "H", "i": "M", "j": "N"}
    _check_main(call, query, key, value)
    operands = [(query, (*batch, "h", "i", "d")), (key, (*batch, "h", "j", "d")), (value, (*batch, "h", "j", "v"))]
    out = (*batch, "h", "i", "j", "v")

    def along(name: str, array: Any, indices: tuple[str, ...]) -> None:
        own = indices[len(indices) - array.ndim :] if array.ndim <= len(indices) else indices
        for number, index in enumerate(own):
            if index in chunks and array.shape[number] != 1:
                whose = "key" if index == "j" else "query"
                _agree(name, names[index], array.chunks[number], whose, chunks[index])
            elif index not in chunks:
                _whole(name, str(number), array.chunks[number])
        operands.append((array, own))

    if mask is not None:
        along("mask", mask, out[:-1])
    layout = Layout(call.scale, mask is not None, bias is not None)
    if isinstance(bias, PositionBias):
        rank = bias.f.query_rank
        along("bias.query_positions", bias.query_positions, (*batch, "i", "box")[: len(batch) + rank])
        grid = isinstance(bias.value_positions, Grid)
        if not grid:
            along("bias.value_positions", bias.value_positions, (*batch, "j"))
        small = [*leaves(bias.f), *(leaves(bias.value_positions) if grid else [])]
        for place, array in enumerate(small):
            whole = array if max(array.numblocks, default=1) == 1 else array.rechunk(array.shape)
            operands.append((whole, tuple(f"p{place}.{axis}" for axis in range(array.ndim))))
        split = bias.f.heads > 1 and len(chunks["h"]) > 1
        operands += [(numbers((chunks["h"],)), ("h",))] if split else []
        operands += [(numbers((chunks["j"],)), ("j",))] if grid else []
        layout = layout._replace(function=classes(bias.f), grid=grid, split_heads=split)
    elif bias is not None:
        along("bias", bias, out[:-1])
    return Blocks(operands, out, layout)


def _check_main(call: Call, query: Any, key: Any, value: Any) -> None:
    """Chunks of query, key and value."""
    for name, array, axis in (("query", query, "D"), ("key", key, "D"), ("value", value, "Dv")):
        _whole(name, axis, array.chunks[-1])
    for name, array in (("key", key), ("value", value)):
        for number in range(len(call.batch)):
            _agree(name, f"axis {number}", array.chunks[number], "query", query.chunks[number])
    _agree("value", "Hk", value.chunks[-3], "key", key.chunks[-3])
    _agree("value", "N", value.chunks[-2], "key", key.chunks[-2])
    group = call.H // call.Hk if call.Hk else 1
    heads = query.chunks[-3]
    wanted = key.chunks[-3] if call.Hk == 1 else tuple(size // group for size in heads)
    if (call.Hk != 1 and any(size % group for size in heads)) or key.chunks[-3] != wanted:
        raise ValueError(
            f"`key` must have its Hk = {call.Hk} heads in the chunks of query's H = {call.H}, divided by {group}; "
            f"query has {heads}, key {key.chunks[-3]} [IA-X-25]"
        )


def _agree(name: str, axis: str, got: tuple[int, ...], whose: str, wanted: tuple[int, ...]) -> None:
    if got != wanted:
        raise ValueError(
            f"`{name}` must have the chunks of {whose} along {axis}, {_sizes(wanted)}; got {_sizes(got)} [IA-X-25]"
        )


def _whole(name: str, axis: str, got: tuple[int, ...]) -> None:
    if len(got) > 1:
        what = f"axis {axis}" if axis.isdigit() else axis
        raise ValueError(f"`{name}` must not be split along {what}; got chunks {_sizes(got)} [IA-X-25]")


def _sizes(chunks: tuple[int, ...]) -> str:
    """Few numbers, also of many chunks.

    >>> _sizes((4, 4)), _sizes((4,) * 100)
    ('(4, 4)', '(4, 4, 4, ... 4), 100 chunks of 400 together')
    """
    if len(chunks) <= 8:
        return str(chunks)
    return f"({', '.join(map(str, chunks[:3]))}, ... {chunks[-1]}), {len(chunks)} chunks of {sum(chunks)} together"


def block_state(*blocks: Any, layout: Layout) -> Array:
    """The packed state of one pair of blocks, (..., H, m, 1, Dv + 2)."""
    arrays = iter([_only(block) for block in blocks])
    query, key, value = next(arrays), next(arrays), next(arrays)
    mask = next(arrays) if layout.has_mask else None
    bias: Any = None
    if layout.function is not None:
        bias = _block_bias(arrays, layout, key.shape[-2])
    elif layout.has_bias:
        bias = next(arrays)
    call = check_call(query, key, value, bias, mask, layout.scale)
    path = _registry.fastest(call, _registry.named(query, key, value, bias, mask), True)
    output, lse = _registry.load(path).attend(call, query, key, value, bias, mask)
    state = RelativeState(output, lse, call.xp.zeros_like(lse))
    if call.xp.any((call.xp.abs(lse) > LARGE) & call.xp.isfinite(lse)):
        state = _in_two_numbers(call, query, key, value, bias, mask)
    return _packed(state)[..., None, :]


def merge_packed(packed: Array, axis: Any, keepdims: bool = False) -> Array:
    """The state over several parts of the keys, which stand behind each other along an axis."""
    at = axis[0] if isinstance(axis, tuple) else axis
    xp = array_namespace(packed)
    if packed.shape[at] == 0:  # Dask asks what kind of array comes out, with an empty one
        return xp.sum(packed, axis=at, keepdims=keepdims)
    part = (slice(None),) * (at % packed.ndim)
    states = (packed[(*part, number, ...)] for number in range(packed.shape[at]))
    merged = _packed(functools.reduce(merge_relative, map(_unpacked, states)))
    return xp.expand_dims(merged, axis=at) if keepdims else merged


def unpacked(packed: Array) -> AttentionState:
    """Output and lse of packed states."""
    return absolute(_unpacked(packed))


def _packed(state: RelativeState) -> Array:
    xp = array_namespace(state.output)
    return xp.concat([state.output, state.top[..., None], state.low[..., None]], axis=state.output.ndim - 1)


def _unpacked(packed: Array) -> RelativeState:
    return RelativeState(packed[..., :-2], packed[..., -2], packed[..., -1])


def _in_two_numbers(call: Call, query: Any, key: Any, value: Any, bias: Any, mask: Any) -> RelativeState:
    """The state without the fast path, tile by tile."""
    q, k, v, mask = prepare(call, query, key, value, mask)
    states = [
        relative_state(call._replace(M=i1 - i0), q[..., i0:i1, :], k, v, slab(bias, i0, i1), slab(mask, i0, i1))
        for i0, i1 in tiles(call.M, rows_within(call, SCORES_PER_TILE, LEAST_ROWS))
    ]
    axis = q.ndim - 2
    return RelativeState(*(call.xp.concat(list(parts), axis=axis) for parts in zip(*states, strict=True)))


def _only(block: Any) -> Any:
    """A block; of an axis that is not split and not part of the states, engines give lists of the one block."""
    while isinstance(block, list):
        (block,) = block
    return block


def _block_bias(arrays: Any, layout: Layout, n: int) -> Any:
    """The bias of one pair of blocks, from the rest of its arrays."""
    query_positions = next(arrays)
    value_positions = None if layout.grid else next(arrays)
    f = build(layout.function, arrays)
    grid = Grid(*(next(arrays) for _ in Grid._fields)) if layout.grid else None
    if layout.split_heads:
        heads = next(arrays)
        f = some_heads(f, int(heads[0]), int(heads[0]) + heads.shape[0])
    if grid is None:
        return PositionBias(f, query_positions, value_positions)
    # Whole rows of the grid that hold the block's pixels, then the pixels.
    j0, width = int(next(arrays)[0]) if n else 0, grid.x.shape[0]
    first, last = j0 // width, -(-(j0 + n) // width)
    rows = PositionBias(f, query_positions, grid._replace(y=grid.y[first:last])).dense()
    return rows[..., j0 - first * width : j0 - first * width + n]


def some_heads(f: Any, h0: int, h1: int) -> Any:
    """A bias function of heads h0 .. h1 - 1."""
    if isinstance(f, BoxMLP):
        return BoxMLP(some_heads(f.x, h0, h1), some_heads(f.y, h0, h1))
    cut = {
        name: getattr(f, name)[h0:h1, ...] if axis == 0 else getattr(f, name)[..., h0:h1]
        for name, axis in HEAD_AXES[type(f)].items()
    }
    return f._replace(**cut)
