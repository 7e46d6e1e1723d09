"""JAX: attention over sequences that are sharded along a mesh axis, as a ring.

Queries, keys and values stand in equal shards along one axis of a mesh. Keys, values and their positions travel round
the ring of devices, a piece of each shard after another; each device attends its own queries to the piece at hand while
the next one is on its way, and merges the partial states. Backward the pieces travel again, and their gradients with
them. Besides its own shard no device ever holds more than two pieces of keys, nor scores beyond a tile of its rows and
the columns of a piece.

==================  ================================  =========================================
array               shape on one of P devices         travels
==================  ================================  =========================================
query, output       (..., H, M / P, D or Dv)          no
key, value          (..., Hk, N / P, D or Dv)         forward P - 1 times, backward P - 1 times
their gradients     the same, in the working dtype    backward P times
positions           (..., M / P), (..., N / P)        those of the values, with these
bias, mask          (..., H, M / P, N)                no: columns are cut out
==================  ================================  =========================================
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from .._arrays import widen
from .._attention import prepare
from .._checks import Call, check_call
from .._position_bias import PositionBias
from .._positions import Grid
from . import _jax_parts as parts
from ._compiled_bias import network_as_lines
from ._jax import LEAST_HIDDEN, TILE_ROWS
from ._relative import RelativeState, absolute, empty_relative, merge_relative, relative_state

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

__all__ = ["ring_attention"]

# Axes of the rows in the parts of a state, from behind.
BACKS = (-2, -1, -1)


def ring_attention(
    query: Float[jax.Array, "... H M D"],
    key: Float[jax.Array, "... Hk N D"],
    value: Float[jax.Array, "... Hk N Dv"],
    *,
    mesh: Any,
    axis: str,
    bias: Float[jax.Array, ...] | PositionBias | None = None,
    mask: Bool[jax.Array, ...] | None = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Any:
    """Indirect attention (P11) over sequences sharded along a mesh axis.

    Parameters
    ----------
    query, key, value, bias, mask, scale, return_lse
        As in :func:`ia_core.indirect_attention`: whole arrays, which JAX shards along M and N if they are not yet.
    mesh : jax.sharding.Mesh
    axis : str
        The mesh axis along which M and N are split. What stands on other axes of the mesh, such as heads or the batch,
        the compiler keeps apart, but for gradients of a position bias, which it sums over them in every tile; inside
        of ``jax.shard_map`` over these axes they are summed once (docs/scale-out.md).

    Returns
    -------
    output : array of shape (..., H, M, Dv)
        Sharded along M.
    lse : array of shape (..., H, M), if asked for

    Raises
    ------
    TypeError, ValueError
        As :func:`ia_core.indirect_attention`; and if the mesh has no such axis, or its P devices do not divide M or N,
        or for boxes the rows of the grid (IA-X-25).

    Notes
    -----
    Equation P11 of arXiv 2509.26015; the ring is that of Liu, Zaharia and Abbeel, arXiv 2310.01889. First derivatives
    in reverse, with respect to every float; a bias that is an array has a gradient of its own size.

    Examples
    --------
    >>> mesh = jax.make_mesh((jax.device_count(),), ("sequence",))
    >>> q = jnp.ones((1, 8 * jax.device_count(), 4))
    >>> ring_attention(q, q, q, mesh=mesh, axis="sequence").shape == q.shape
    True
    """
    call = check_call(query, key, value, bias, mask, scale)
    _check_mesh(call, mesh, axis, bias)
    output, lse = _ring(query, key, value, bias, mask, mesh=mesh, axis=axis, scale=call.scale)
    output = output.astype(query.dtype)  # the one rounding
    return (output, lse) if return_lse else output


def _check_mesh(call: Call, mesh: Any, axis: str, bias: Any) -> None:
    if not hasattr(mesh, "shape") or not hasattr(mesh, "axis_names"):
        raise ValueError(f"`mesh` must be a jax.sharding.Mesh; got {type(mesh).__name__} [IA-X-25]")
    if axis not in mesh.shape:
        raise ValueError(f"`axis` must be one of the mesh, {', '.join(map(repr, mesh.shape))}; got {axis!r} [IA-X-25]")
    devices = mesh.shape[axis]
    sizes = {"query": ("M", call.M), "key": ("N", call.N)}
    if isinstance(bias, PositionBias) and isinstance(bias.value_positions, Grid):
        sizes["bias.value_positions"] = ("rows", bias.value_positions.y.shape[0])
    for name, (letter, size) in sizes.items():
        if size % devices:
            raise ValueError(
                f"`{name}` must have {letter} divisible by the {devices} devices of mesh axis {axis!r}; "
                f"got {letter} = {size} [IA-X-25]"
            )


@functools.partial(jax.jit, static_argnames=("mesh", "axis", "scale"))
def _ring(query: Any, key: Any, value: Any, bias: Any, mask: Any, *, mesh: Any, axis: str, scale: float) -> Any:
    call = check_call(query, key, value, bias, mask, scale)
    if 0 in (call.M, call.N) or 0 in value.shape:  # nothing travels
        from .._attention import attend

        return attend(call, query, key, value, bias, mask)
    staying, moving = _apart(query, key, value, network_as_lines(bias, LEAST_HIDDEN), mask)
    specs = _specs(call, axis, staying, moving)
    return absolute(_differentiable(staying, moving, (call, mesh, axis, specs)))


def _apart(query: Any, key: Any, value: Any, bias: Any, mask: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What stays on its device, and what travels."""
    staying, moving = {"query": query, "mask": mask}, {"key": key, "value": value}
    if not isinstance(bias, PositionBias):
        return staying | {"bias": bias}, moving
    staying |= {"f": bias.f, "query_positions": bias.query_positions}
    if isinstance(bias.value_positions, Grid):  # shards are whole rows of it
        staying["grid_x"], moving["grid_y"] = bias.value_positions.x, bias.value_positions.y
    else:
        moving["value_positions"] = bias.value_positions
    return staying, moving


def _specs(call: Call, axis: str, staying: dict[str, Any], moving: dict[str, Any]) -> Any:
    """Partition specs of both trees, and of a state."""

    def along(array: Any, back: int, size: int) -> PartitionSpec:
        if array.ndim < back or array.shape[-back] != size:  # one for all
            return PartitionSpec()
        return PartitionSpec(*(None,) * (array.ndim - back), axis)

    of_staying = {name: jax.tree.map(lambda _: PartitionSpec(), tree) for name, tree in staying.items()}
    rank = staying["f"].query_rank if "f" in staying else 1
    for name, back in (("query", 2), ("mask", 2), ("bias", 2), ("query_positions", rank)):
        if staying.get(name) is not None:
            of_staying[name] = along(staying[name], back, call.M)
    backs = {"key": 2, "value": 2, "value_positions": 1, "grid_y": 1}
    of_moving = {name: along(array, backs[name], array.shape[-backs[name]]) for name, array in moving.items()}
    rows = PartitionSpec(*(None,) * (len(call.batch) + 1), axis)
    return of_staying, of_moving, RelativeState(rows, rows, rows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _differentiable(staying: Any, moving: Any, how: Any) -> RelativeState:
    call, mesh, axis, (of_staying, of_moving, of_state) = how
    local = functools.partial(_forward, call=call, axis=axis, devices=mesh.shape[axis])
    return _sharded(local, mesh, axis, (of_staying, of_moving), of_state)(staying, moving)


def _differentiable_forward(staying: Any, moving: Any, how: Any) -> Any:
    state = _differentiable(staying, moving, how)
    return state, (staying, moving, state)


def _differentiable_backward(how: Any, kept: Any, cotangent: RelativeState) -> Any:
    call, mesh, axis, (of_staying, of_moving, of_state) = how
    local = functools.partial(_backward, call=call, axis=axis, devices=mesh.shape[axis], specs=(of_staying, of_moving))
    staying, moving, _ = kept
    floats = (parts.only_floats(staying, of_staying), parts.only_floats(moving, of_moving))
    specs = (of_staying, of_moving, of_state, of_state)
    found = _sharded(local, mesh, axis, specs, floats)(*kept, cotangent)
    # The cotangents of integers and booleans are None.
    return tuple(parts.as_tree(grads, tree) for grads, tree in zip(found, (staying, moving), strict=True))


_differentiable.defvjp(_differentiable_forward, _differentiable_backward)


def _sharded(function: Any, mesh: Any, axis: str, in_specs: Any, out_specs: Any) -> Any:
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names={axis}, check_vma=False
    )
    if dict(zip(mesh.axis_names, mesh.axis_types, strict=True))[axis] != jax.sharding.AxisType.Explicit:
        return mapped
    # Along an explicit axis nothing moves unless it is told to.

    def place(leaf: Any, spec: PartitionSpec) -> Any:
        now = (*jax.typeof(leaf).sharding.spec, *(None,) * leaf.ndim)[: leaf.ndim]
        wanted = (*spec, *(None,) * leaf.ndim)[: leaf.ndim]
        kept = [axis if new == axis else None if old == axis else old for new, old in zip(wanted, now, strict=True)]
        return jax.sharding.reshard(leaf, jax.sharding.NamedSharding(mesh, PartitionSpec(*kept)))

    return lambda *trees: mapped(*jax.tree.map(place, trees, in_specs))


def _forward(staying: Any, moving: Any, *, call: Call, axis: str, devices: int) -> RelativeState:
    """The state of one device's queries over all keys."""
    own, count = jax.lax.axis_index(axis), parts.pieces(moving)
    attend = functools.partial(_attend_piece, staying, call=call, count=count)
    # Like the queries: other axes may be explicit, and then part of the type that a loop keeps.
    query, Dv = staying["query"], moving["value"].shape[-1]
    like = jnp.zeros_like(widen(query)[..., :1])
    empty = empty_relative(like + jnp.zeros(Dv, like.dtype))

    def once_round(state: Any, c: Any) -> Any:
        def step(carry: Any, number: Any) -> Any:
            so_far, at_hand = carry
            coming = _passed_on(at_hand, axis, devices)  # on its way while this one is computed with
            return (attend(at_hand, so_far, (own - number) % devices, c), coming), None

        (state, last), _ = jax.lax.scan(step, (state, parts.piece(moving, c, count)), jnp.arange(devices - 1))
        return attend(last, state, (own + 1) % devices, c), None

    return jax.lax.scan(once_round, empty, jnp.arange(count))[0]


def _attend_piece(
    staying: Any, at_hand: Any, state: RelativeState, whose: Any, c: Any, *, call: Call, count: int
) -> RelativeState:
    """The state, merged with that over one piece of a device's keys."""

    def tile(so_far: RelativeState, places: Any, rows: Any) -> RelativeState:
        found = _tile_state(parts.cut(staying, places), at_hand, call)
        merged = merge_relative(_cut_rows(so_far, rows), found)
        into = zip(so_far, BACKS, merged, strict=True)
        return RelativeState(*(parts.put(whole, rows[back], part) for whole, back, part in into))

    return _over_tiles(tile, state, staying, at_hand, whose, c, call, count)


def _backward(
    staying: Any, moving: Any, state: RelativeState, cotangent: RelativeState, *, call: Call, axis: str, devices: int,
    specs: Any,
) -> Any:  # fmt: skip
    """Gradients of one device's part: of what stays summed over all keys, of its keys over the devices."""
    own, count = jax.lax.axis_index(axis), parts.pieces(moving)
    add_to = functools.partial(_add_gradients, staying, state=state, cotangent=cotangent, call=call, count=count)

    def once_round(carry: Any, c: Any) -> Any:
        of_staying, of_moving = carry
        at_hand = parts.piece(moving, c, count)

        def step(carry: Any, number: Any) -> Any:
            at_hand, of_staying, of_piece = carry
            coming = _passed_on(at_hand, axis, devices)
            of_staying, of_piece = add_to(at_hand, (of_staying, of_piece), (own - number) % devices, c)
            return (coming, of_staying, _passed_on(of_piece, axis, devices)), None

        start = (at_hand, of_staying, parts.zeros(at_hand))
        (last, of_staying, of_piece), _ = jax.lax.scan(step, start, jnp.arange(devices - 1))
        of_staying, of_piece = add_to(last, (of_staying, of_piece), (own + 1) % devices, c)
        of_piece = _passed_on(of_piece, axis, devices)  # home
        return (of_staying, parts.put_piece(of_moving, of_piece, c, count)), None

    start = (parts.zeros(staying), parts.zeros(moving))
    (of_staying, of_moving), _ = jax.lax.scan(once_round, start, jnp.arange(count))
    # What all devices share gets its gradient from all of them.
    shared = [PartitionSpec() == spec for spec in parts.only_floats(staying, specs[0])]
    found = jax.tree.leaves(of_staying)
    found = [jax.lax.psum(g, axis) if every else g for g, every in zip(found, shared, strict=True)]
    dtypes = [leaf.dtype for leaf in (*parts.floats(staying), *parts.floats(moving))]
    rounded = [g.astype(dtype) for g, dtype in zip((*found, *jax.tree.leaves(of_moving)), dtypes, strict=True)]
    return rounded[: len(found)], rounded[len(found) :]


def _add_gradients(
    staying: Any, at_hand: Any, sums: Any, whose: Any, c: Any, *, state: RelativeState, cotangent: RelativeState,
    call: Call, count: int,
) -> Any:  # fmt: skip
    """The sums, and what one piece's state adds, in the working dtype.

    The output is sum_b w_b output_b with w_b = exp(lse_b - lse): a piece's output has the cotangent w_b times that of
    the output, its lse w_b (<cotangent, output_b - output> + the cotangent of the lse).
    """

    def tile(sums: Any, places: Any, rows: Any) -> Any:
        mine, its_state, its_cotangent = parts.cut(staying, places), _cut_rows(state, rows), _cut_rows(cotangent, rows)
        inputs = [{name: parts.widened(tree) for name, tree in some.items()} for some in (mine, at_hand)]

        def of_floats(some: Any, others: Any) -> RelativeState:
            return _tile_state(parts.put_back(some, mine), parts.put_back(others, at_hand), call)

        found, pull = jax.vjp(of_floats, *inputs)
        empty = its_state.top == -jnp.inf
        gap = (found.top - its_state.top) + (found.low - its_state.low)
        weight = jnp.exp(jnp.where(empty, -jnp.inf, gap))
        # `absolute` gives top and low one cotangent, that of the lse; a change of top alone changes nothing.
        change = jnp.sum(its_cotangent.output * (found.output - its_state.output), axis=-1)
        of_lse = weight * (change + its_cotangent.low)
        given = RelativeState(weight[..., None] * its_cotangent.output, jnp.zeros_like(found.top), of_lse)
        of_tile = pull(given)
        return parts.add(sums[0], of_tile[0], places), parts.add(sums[1], of_tile[1], {})

    return _over_tiles(tile, sums, staying, at_hand, whose, c, call, count)


def _cut_rows(state: RelativeState, rows: Any) -> RelativeState:
    return RelativeState(*(parts.at(part, rows[back]) for part, back in zip(state, BACKS, strict=True)))


def _tile_state(mine: Any, at_hand: Any, call: Call) -> RelativeState:
    """The state of a tile of queries over one piece of keys."""
    query, key = mine["query"], at_hand["key"]
    its_call = call._replace(M=query.shape[-2], N=key.shape[-2])
    bias = mine.get("bias")
    if "f" in mine:
        where = at_hand.get("value_positions")
        where = Grid(x=mine["grid_x"], y=at_hand["grid_y"]) if where is None else where
        bias = PositionBias(mine["f"], mine["query_positions"], where)
    with jax.default_matmul_precision("highest"):
        q, k, v, mask = prepare(its_call, query, key, at_hand["value"], mine["mask"])
        return relative_state(its_call, q, k, v, bias, mask)


def _over_tiles(
    function: Any, carry: Any, staying: Any, at_hand: Any, whose: Any, c: Any, call: Call, count: int
) -> Any:
    """Tile after tile of rows; ``function(carry, places of what stays, places of the rows)`` gives the next carry."""
    M, n = staying["query"].shape[-2], at_hand["key"].shape[-2]
    j0 = whose * n * count + c * n

    def tile(i0: Any, rows: int, carry: Any) -> Any:
        of_rows = {back: ((back, i0, rows),) for back in BACKS}
        return function(carry, parts.places(staying, call, (i0, rows), (j0, n)), of_rows)

    rows = min(M, TILE_ROWS)
    whole = M // rows
    carry = jax.lax.fori_loop(0, whole, lambda i, so_far: tile(i * rows, rows, so_far), carry)
    return carry if M == whole * rows else tile(whole * rows, M - whole * rows, carry)


def _passed_on(tree: Any, axis: str, devices: int) -> Any:
    if devices == 1:
        return tree
    to_next = [(device, (device + 1) % devices) for device in range(devices)]
    return jax.tree.map(lambda array: jax.lax.ppermute(array, axis, to_next), tree)
