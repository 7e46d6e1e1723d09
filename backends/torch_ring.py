"""PyTorch: attention over sequences whose parts lie on the ranks of a process group, as a ring.

Each rank has its own part of the queries, and of the keys and values. Keys, values and their positions travel round
the group; each rank attends its queries to the part at hand while the next one is on its way, and merges the partial
states. Backward the parts travel again, and their gradients with them. Parts may differ in size from rank to rank.

==================  ================================  =========================================
tensor              shape on a rank                   travels
==================  ================================  =========================================
query, output       (..., H, m, D or Dv)              no
key, value          (..., Hk, n, D or Dv)             forward P - 1 times, backward P - 1 times
their gradients     the same, in the working dtype    backward P times
positions           (..., m), (..., n)                those of the values, with these
bias, mask          (..., H, m, N)                    no: columns are cut out
==================  ================================  =========================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist

from .._arrays import namespace_of, widen
from .._attention import prepare
from .._checks import Call, check_call, check_over_scores
from .._position_bias import PositionBias
from .._positions import Grid
from ._compiled_bias import network_as_lines
from ._relative import RelativeState, absolute, empty_relative, merge_relative, relative_state
from ._tiled import tiles
from ._torch import own_precision
from ._torch_tiled import TILE_ROWS
from ._trees import build, classes, leaves

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

__all__ = ["ring_attention"]


def ring_attention(
    query: Float[torch.Tensor, "... H m D"],
    key: Float[torch.Tensor, "... Hk n D"],
    value: Float[torch.Tensor, "... Hk n Dv"],
    *,
    group: Any = None,
    bias: Float[torch.Tensor, ...] | PositionBias | None = None,
    mask: Bool[torch.Tensor, ...] | None = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Any:
    """Indirect attention (P11) of this rank's queries to the keys of all ranks of a process group.

    Every rank of the group calls it, with its parts.

    Parameters
    ----------
    query : tensor of shape (..., H, m, D)
        This rank's part of the queries.
    key, value : tensors of shape (..., Hk, n, D) and (..., Hk, n, Dv)
        This rank's part of the keys and values; the N of all ranks together stand in the order of ranks.
    group : torch.distributed.ProcessGroup, optional
        Of any back end that sends and receives; the default group otherwise.
    bias : tensor broadcastable to (..., H, m, N), or PositionBias, optional
        A PositionBias has this rank's query and value positions (for boxes: this rank's rows of the grid).
    mask : boolean tensor broadcastable to (..., H, m, N), optional
        Of this rank's queries, over all keys.
    scale, return_lse
        As in :func:`ia_core.indirect_attention`.

    Returns
    -------
    output : tensor of shape (..., H, m, Dv)
    lse : tensor of shape (..., H, m), if asked for

    Raises
    ------
    TypeError, ValueError
        On every rank, as :func:`ia_core.indirect_attention` on one; and if ranks do not fit each other, also in whether
        a gradient is asked for, or this rank is none of the group (IA-X-25).
    RuntimeError
        If a rank of the group is gone, at the latest after the group's timeout; and if a second derivative is taken.

    Notes
    -----
    Equation P11 of arXiv 2509.26015; the ring is that of Liu, Zaharia and Abbeel, arXiv 2310.01889. What the ranks'
    losses add up to is differentiated: parts of query, key, value and positions get its whole gradient, the parameters
    of f, which every rank has, only what this rank's queries contribute. Sum those over the group, as data parallelism
    does; a rank's share is rounded to the dtype of the parameter, so keep parameters beside halves in float32.

    Examples
    --------
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> output = ring_attention(torch.zeros(1, 2, 4), torch.ones(1, 3, 4), torch.ones(1, 3, 1))
    >>> dist.destroy_process_group()
    >>> output.shape
    torch.Size([1, 2, 1])
    """
    if dist.get_rank(group) < 0:
        raise ValueError(f"`group` must have this rank in it; rank {dist.get_rank()} is not [IA-X-25]")
    parts = _parts(query, key, value, bias, mask)
    ring = _meet(query, key, value, bias, mask, scale, group, parts)
    state = RelativeState(*_Ring.apply(ring, *parts.staying.values(), *parts.moving.values()))
    output, lse = absolute(state)
    output = output.to(query.dtype)  # the one rounding
    return (output, lse) if return_lse else output


class Parts(NamedTuple):
    """The tensors of a call by name: what stays on its rank, and what travels; f is taken apart."""

    staying: dict[str, torch.Tensor]
    moving: dict[str, torch.Tensor]
    f: Any = None


class Ring(NamedTuple):
    """A checked call on one rank, and the group."""

    call: Call
    group: Any
    rank: int
    # Of each rank: the shapes of what it sends.
    shapes: list[dict[str, tuple[int, ...]]]
    # The names of what stays and of what travels, the classes of f, and how many axes a query's position has.
    staying: tuple[str, ...]
    moving: tuple[str, ...]
    f: Any
    query_rank: int

    @property
    def steps(self) -> int:
        """As many as there are ranks."""
        return len(self.shapes)

    def at_hand(self, step: int) -> int:
        """Whose part is here."""
        return (self.rank - step) % self.steps

    def keys(self, step: int) -> tuple[int, int]:
        """First key at hand, and the one behind the last."""
        sizes = [shapes["key"][-2] for shapes in self.shapes]
        whose = self.at_hand(step)
        return sum(sizes[:whose]), sum(sizes[: whose + 1])


def _parts(query: Any, key: Any, value: Any, bias: Any, mask: Any) -> Parts:
    staying, moving = {"query": query, "mask": mask}, {"key": key, "value": value}
    structure = None
    if not isinstance(bias, PositionBias):
        staying["bias"] = bias
    else:
        structure = classes(bias.f)
        staying["query_positions"] = bias.query_positions
        staying |= {f"f.{place}": leaf for place, leaf in enumerate(leaves(bias.f))}
        if isinstance(bias.value_positions, Grid):
            staying["grid_x"], moving["grid_y"] = bias.value_positions.x, bias.value_positions.y
        else:
            moving["value_positions"] = bias.value_positions
    return Parts({name: part for name, part in staying.items() if part is not None}, moving, structure)


def _meet(query: Any, key: Any, value: Any, bias: Any, mask: Any, scale: Any, group: Any, parts: Parts) -> Ring:
    """Check the call on every rank, and that they fit each other, also backward; one that is wrong is so for all."""
    is_position = isinstance(bias, PositionBias)
    mine: dict[str, Any] = {}
    error: Exception | None = None
    try:
        call = check_call(query, key, value, bias if is_position else None, None, scale)
        over = {name: parts.staying[name] for name in ("bias", "mask") if name in parts.staying}
        namespace_of(query=query, **over)
        mine = {"shapes": {name: tuple(part.shape) for name, part in parts.moving.items()}, "over": bool(over)}
        mine["same"] = {
            "dtype": str(query.dtype),
            "scale": call.scale,
            "the leading axes and H": (*call.batch, call.H),
            "key without N": (*key.shape[:-2], key.shape[-1]),
            "value without N": (*value.shape[:-2], value.shape[-1]),
            "the dtypes of what travels": [str(part.dtype) for part in parts.moving.values()],
            "the kind of bias": type(bias.f).__name__ if is_position else None,
            "whether a gradient is asked for": torch.is_grad_enabled()
            and any(part.requires_grad for part in (*parts.staying.values(), *parts.moving.values())),
        }
    except (TypeError, ValueError) as caught:
        error = caught
    everyone = _raise_together(mine, error, group)
    rank = dist.get_rank(group)
    for other, its in enumerate(everyone):
        for name, wanted in mine["same"].items():
            if its["same"][name] != wanted:
                raise ValueError(
                    f"ranks must agree in {name}; rank {rank} has {wanted}, rank {other} {its['same'][name]} [IA-X-25]"
                )
    shapes = [its["shapes"] for its in everyone]
    call = call._replace(N=sum(of_rank["key"][-2] for of_rank in shapes))
    if any(its["over"] for its in everyone):
        try:
            check_over_scores(call, query, None if is_position else bias, mask)
        except (TypeError, ValueError) as caught:
            error = caught
        _raise_together({}, error, group)
    names = tuple(parts.staying), tuple(parts.moving)
    return Ring(call, group, rank, shapes, *names, parts.f, bias.f.query_rank if is_position else 1)


def _raise_together(mine: Any, error: Exception | None, group: Any) -> list[Any]:
    """What every rank says; an error on one rank is one on all, so that none waits for the others."""
    said: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(said, (mine, None if error is None else str(error)), group)
    if error is not None:
        raise error
    for rank, (_, text) in enumerate(said):
        if text is not None:
            raise ValueError(f"rank {rank} of the group was called wrongly: {text}")
    return [its for its, _ in said]


class _Ring(torch.autograd.Function):
    """The state of this rank's queries over the keys of all ranks."""

    @staticmethod
    def forward(ctx: Any, ring: Ring, *tensors: Any) -> Any:
        parts = _of_tensors(ring, tensors)
        query = parts.staying["query"]
        M, Dv = query.shape[-2], parts.moving["value"].shape[-1]
        state = empty_relative(widen(query.new_zeros((*query.shape[:-1], Dv))))
        output, top, low = state.output, state.top.clone(), state.low.clone()
        at_hand = parts.moving
        with own_precision(query):
            for step in range(ring.steps):
                coming = _Passing(at_hand, ring, step) if step + 1 < ring.steps else None
                for i0, i1 in _tiles(ring, step, M):
                    found = _tile_state(_tile(parts.staying, ring, step, i0, i1), at_hand, ring)
                    so_far = RelativeState(output[..., i0:i1, :], top[..., i0:i1], low[..., i0:i1])
                    merged = merge_relative(so_far, found)
                    for into, part in zip(so_far, merged, strict=True):
                        into.copy_(part)
                at_hand = at_hand if coming is None else coming.arrived()
        ctx.ring = ring
        ctx.save_for_backward(*tensors, output, top, low)
        return output, top, low

    @staticmethod
    def backward(ctx: Any, of_output: Any, of_top: Any, of_low: Any) -> Any:
        # `absolute` gives top and low one cotangent, that of the lse; a change of top alone changes nothing.
        with torch.no_grad():
            found = _gradients(ctx.ring, ctx.saved_tensors, of_output, of_low)
        if not torch.is_grad_enabled():
            return None, *found
        # Asked to be differentiable itself (create_graph): what is no function of the inputs to autograd would count
        # as constant, silently.
        return None, *(None if one is None else _Once.apply(one.requires_grad_()) for one in found)


class _Once(torch.autograd.Function):
    """A gradient that has none."""

    @staticmethod
    def forward(ctx: Any, gradient: Any) -> Any:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, cotangent: Any) -> Any:
        raise RuntimeError("trying to differentiate twice: ring_attention has first derivatives only")


def _gradients(ring: Ring, saved: Any, of_output: Any, of_low: Any) -> list[Any]:
    """Of every tensor, in its order and dtype; None where it is no float."""
    *tensors, output, top, low = saved
    parts = _of_tensors(ring, tensors)
    sums = [
        {name: torch.zeros_like(widen(part)) for name, part in some.items() if part.is_floating_point()}
        for some in (parts.staying, parts.moving)
    ]
    at_hand, of_moving = parts.moving, sums[1]
    with own_precision(output):
        for step in range(ring.steps):
            coming = _Passing(at_hand, ring, step) if step + 1 < ring.steps else None
            for i0, i1 in _tiles(ring, step, output.shape[-2]):
                state = RelativeState(output[..., i0:i1, :], top[..., i0:i1], low[..., i0:i1])
                cotangent = (of_output[..., i0:i1, :], of_low[..., i0:i1])
                tile = _tile(parts.staying, ring, step, i0, i1)
                found = _tile_gradients(tile, at_hand, ring, state, cotangent)
                _add(found[0], _tile(sums[0], ring, step, i0, i1))
                _add(found[1], of_moving)
            of_moving = _Passing(of_moving, ring, step, len(at_hand)).arrived()  # after the last step at home again
            at_hand = at_hand if coming is None else coming.arrived()
    gradients = sums[0] | of_moving
    names = (*ring.staying, *ring.moving)
    given = zip(names, tensors, strict=True)
    return [gradients[name].to(x.dtype) if name in gradients else None for name, x in given]


def _of_tensors(ring: Ring, tensors: Any) -> Parts:
    count = len(ring.staying)
    staying = dict(zip(ring.staying, tensors[:count], strict=True))
    return Parts(staying, dict(zip(ring.moving, tensors[count:], strict=True)), ring.f)


def _tiles(ring: Ring, step: int, M: int) -> list[tuple[int, int]]:
    j0, j1 = ring.keys(step)
    return tiles(M, TILE_ROWS) if j1 > j0 else []


def _tile(staying: dict[str, Any], ring: Ring, step: int, i0: int, i1: int) -> dict[str, Any]:
    """Of what stays, the rows of a tile and the columns of the part at hand, as views."""
    j0, j1 = ring.keys(step)

    def view(name: str, part: Any) -> Any:
        if name == "query":
            return part[..., i0:i1, :]
        if name == "query_positions":
            return part[(..., slice(i0, i1), *(slice(None),) * (ring.query_rank - 1))]
        if name in ("bias", "mask"):
            part = part[..., i0:i1, :] if part.ndim > 1 and part.shape[-2] != 1 else part
            return part[..., j0:j1] if part.ndim and part.shape[-1] != 1 else part
        return part

    return {name: view(name, part) for name, part in staying.items()}


def _tile_state(tile: dict[str, Any], at_hand: dict[str, Any], ring: Ring) -> RelativeState:
    """The state of a tile of queries over the part at hand."""
    query, key = tile["query"], at_hand["key"]
    call = ring.call._replace(M=query.shape[-2], N=key.shape[-2])
    bias: Any = tile.get("bias")
    if ring.f is not None:
        f = build(ring.f, iter([part for name, part in tile.items() if name.startswith("f.")]))
        where = Grid(x=tile["grid_x"], y=at_hand["grid_y"]) if "grid_x" in tile else at_hand["value_positions"]
        bias = network_as_lines(PositionBias(f, tile["query_positions"], where))
    q, k, v, mask = prepare(call, query, key, at_hand["value"], tile.get("mask"))
    return relative_state(call, q, k, v, bias, mask)


def _tile_gradients(
    tile: dict[str, Any], at_hand: dict[str, Any], ring: Ring, state: RelativeState, cotangent: tuple[Any, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Gradients through one tile's state, in the working dtype.

    The output is sum_b w_b output_b with w_b = exp(lse_b - lse): a part's output has the cotangent w_b times that of
    the output, its lse w_b (<cotangent, output_b - output> + the cotangent of the lse).
    """
    some = [
        {name: widen(part.detach()).requires_grad_() for name, part in parts.items() if part.is_floating_point()}
        for parts in (tile, at_hand)
    ]
    with torch.enable_grad():
        mine = _tile_state(tile | some[0], at_hand | some[1], ring)
    with torch.no_grad():
        gap = (mine.top - state.top) + (mine.low - state.low)
        weight = torch.exp(torch.where(state.top == -torch.inf, -torch.inf, gap))
        of_output, of_lse = cotangent
        of_low = weight * (torch.sum(of_output * (mine.output - state.output), dim=-1) + of_lse)
    inputs = [*some[0].values(), *some[1].values()]
    found = torch.autograd.grad(
        [mine.output, mine.low], inputs, [weight[..., None] * of_output, of_low], allow_unused=True
    )
    given = iter(found)
    return {name: next(given) for name in some[0]}, {name: next(given) for name in some[1]}


def _add(found: dict[str, Any], into: dict[str, Any]) -> None:
    for name, gradient in found.items():
        if gradient is not None:
            into[name].add_(gradient)


class _Passing:
    """Parts on their way: mine to the next rank, and those of the rank before to me."""

    def __init__(self, parts: dict[str, Any], ring: Ring, step: int, first_tag: int = 0) -> None:
        coming = ring.shapes[ring.at_hand(step + 1)]
        self._sent = [part.contiguous() for part in parts.values()]
        self._parts = {name: part.new_empty(coming[name]) for name, part in parts.items()}
        self._works: list[Any] = []
        if ring.steps == 1:
            self._parts = parts
            return
        peers = [_peer(ring, (ring.rank + way) % ring.steps) for way in (1, -1)]
        operations = [
            dist.P2POp(how, part, peer, ring.group, tag)
            for how, some, peer in ((dist.isend, self._sent, peers[0]), (dist.irecv, self._parts.values(), peers[1]))
            for tag, part in enumerate(some, first_tag)
            if part.numel()
        ]
        self._works = dist.batch_isend_irecv(operations) if operations else []

    def arrived(self) -> dict[str, Any]:
        """Wait; an error if a rank is gone or the group's timeout is over."""
        for work in self._works:
            work.wait()
        return self._parts


def _peer(ring: Ring, rank: int) -> int:
    return rank if ring.group is None else dist.get_global_rank(ring.group, rank)
