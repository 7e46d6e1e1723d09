"""JAX: attention over sequences that are sharded along a mesh axis, as a ring.

Queries, keys and values stand in equal shards along one axis of a mesh. Keys, values and their positions travel round
the ring of devices; each device attends its own queries to the block at hand while the next one is on its way, and
merges the partial states. Backward the blocks travel again, and their gradients with them. No device ever holds more
than two blocks of keys, nor scores beyond a tile of its rows.

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
from ._compiled_bias import network_as_lines
from ._jax import LEAST_HIDDEN, TILE_ROWS, over_tiles, rows_of
from ._relative import RelativeState, absolute, empty_relative, merge_relative, relative_state

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

__all__ = ["ring_attention"]


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
        the compiler keeps apart.

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
    staying, moving = _apart(query, key, value, bias, mask)
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
    floats = (_only_floats(staying, of_staying), _only_floats(moving, of_moving))
    specs = (of_staying, of_moving, of_state, of_state)
    found = _sharded(local, mesh, axis, specs, floats)(*kept, cotangent)
    # The cotangents of integers and booleans are None.
    return tuple(_as_tree(grads, tree) for grads, tree in zip(found, (staying, moving), strict=True))


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
    own = jax.lax.axis_index(axis)
    block = functools.partial(_block_state, call=call)
    output = jax.eval_shape(block, staying, moving, own).output

    def step(carry: Any, number: Any) -> Any:
        state, at_hand = carry
        coming = _passed_on(at_hand, axis, devices)  # on its way while this one is computed with
        return (merge_relative(state, block(staying, at_hand, (own - number) % devices)), coming), None

    empty = empty_relative(jnp.zeros(output.shape, output.dtype))
    (state, last), _ = jax.lax.scan(step, (empty, moving), jnp.arange(devices - 1))
    return merge_relative(state, block(staying, last, (own + 1) % devices))


def _backward(
    staying: Any, moving: Any, state: RelativeState, cotangent: RelativeState, *, call: Call, axis: str, devices: int,
    specs: Any,
) -> Any:  # fmt: skip
    """Gradients of one device's part: of what stays summed over the blocks, of its block over the devices."""
    own = jax.lax.axis_index(axis)
    step = functools.partial(_block_gradients, call=call, state=state, cotangent=cotangent)

    def body(carry: Any, number: Any) -> Any:
        at_hand, of_staying, of_moving = carry
        coming = _passed_on(at_hand, axis, devices)
        found = step(staying, at_hand, (own - number) % devices)
        of_staying, of_moving = jax.tree.map(jnp.add, (of_staying, of_moving), found)
        return (coming, of_staying, _passed_on(of_moving, axis, devices)), None

    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(step, staying, moving, own))
    (last, of_staying, of_moving), _ = jax.lax.scan(body, (moving, *zeros), jnp.arange(devices - 1))
    found = step(staying, last, (own + 1) % devices)
    of_staying, of_moving = jax.tree.map(jnp.add, (of_staying, of_moving), found)
    of_moving = _passed_on(of_moving, axis, devices)  # home
    # What all devices share gets its gradient from all of them.
    shared = [PartitionSpec() == spec for spec in _only_floats(staying, specs[0])]
    of_staying = [jax.lax.psum(g, axis) if every else g for g, every in zip(of_staying, shared, strict=True)]
    dtypes = [leaf.dtype for leaf in (*_floats(staying), *_floats(moving))]
    rounded = [g.astype(dtype) for g, dtype in zip((*of_staying, *of_moving), dtypes, strict=True)]
    return rounded[: len(of_staying)], rounded[len(of_staying) :]


def _block_gradients(
    staying: Any, at_hand: Any, number: Any, *, call: Call, state: RelativeState, cotangent: RelativeState
) -> Any:
    """Gradients through one block's state, in the working dtype.

    The output is sum_b w_b output_b with w_b = exp(lse_b - lse): a block's output has the cotangent w_b times that of
    the output, its lse w_b (<cotangent, output_b - output> + the cotangent of the lse).
    """
    floats = [[widen(leaf) for leaf in _floats(tree)] for tree in (staying, at_hand)]

    def of_floats(some: Any, others: Any) -> RelativeState:
        return _block_state(_put_back(some, staying), _put_back(others, at_hand), number, call=call)

    mine, pull = jax.vjp(of_floats, *floats)
    empty = state.top == -jnp.inf
    weight = jnp.exp(jnp.where(empty, -jnp.inf, (mine.top - state.top) + (mine.low - state.low)))
    # `absolute` gives top and low one cotangent, that of the lse; a change of top alone changes nothing.
    of_lse = weight * (jnp.sum(cotangent.output * (mine.output - state.output), axis=-1) + cotangent.low)
    found: Any = pull(RelativeState(weight[..., None] * cotangent.output, jnp.zeros_like(mine.top), of_lse))
    return found


def _block_state(staying: Any, at_hand: Any, number: Any, *, call: Call) -> RelativeState:
    """The state of one device's queries over one block of keys; ``number`` says whose block it is."""
    query, key, value = staying["query"], at_hand["key"], at_hand["value"]
    n = key.shape[-2]
    its_call = call._replace(M=query.shape[-2], N=n)
    bias = _block_bias(staying, at_hand, number, call)
    with jax.default_matmul_precision("highest"):
        q, k, v, mask = prepare(its_call, query, key, value, _columns(staying["mask"], number, n, call))

        @functools.partial(jax.checkpoint, static_argnums=1)
        def tile(i0: Any, size: int) -> Any:
            rows = jax.lax.dynamic_slice_in_dim(q, i0, size, axis=-2)
            return tuple(
                relative_state(its_call._replace(M=size), rows, k, v, rows_of(bias, i0, size), rows_of(mask, i0, size))
            )

        return RelativeState(*over_tiles(tile, its_call.M, TILE_ROWS, (-2, -1, -1)))


def _block_bias(staying: Any, at_hand: Any, number: Any, call: Call) -> Any:
    if "f" not in staying:
        return _columns(staying["bias"], number, at_hand["key"].shape[-2], call)
    where = at_hand.get("value_positions")
    where = Grid(x=staying["grid_x"], y=at_hand["grid_y"]) if where is None else where
    return network_as_lines(PositionBias(staying["f"], staying["query_positions"], where), LEAST_HIDDEN)


def _columns(array: Any, number: Any, n: int, call: Call) -> Any:
    """A block's columns of what broadcasts to (..., H, M, N)."""
    if array is None or array.shape == () or array.shape[-1] != call.N or n == call.N:
        return array
    return jax.lax.dynamic_slice_in_dim(array, number * n, n, axis=-1)


def _passed_on(tree: Any, axis: str, devices: int) -> Any:
    if devices == 1:
        return tree
    to_next = [(device, (device + 1) % devices) for device in range(devices)]
    return jax.tree.map(lambda array: jax.lax.ppermute(array, axis, to_next), tree)


def _is_float(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def _floats(tree: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if _is_float(leaf)]


def _only_floats(tree: Any, specs: Any) -> list[Any]:
    """The specs of the floats of a tree, in their order."""
    flat = jax.tree.leaves(specs, is_leaf=lambda spec: isinstance(spec, PartitionSpec))
    return [spec for leaf, spec in zip(jax.tree.leaves(tree), flat, strict=True) if _is_float(leaf)]


def _put_back(floats: Any, tree: Any) -> Any:
    """A tree with other floats."""
    given = iter(floats)
    return jax.tree.map(lambda leaf: next(given) if _is_float(leaf) else leaf, tree)


def _as_tree(floats: Any, tree: Any) -> Any:
    given = iter(floats)
    return jax.tree.map(lambda leaf: next(given) if _is_float(leaf) else None, tree)
