"""torch.func.vmap over what a position bias is made of, and gradients mapped over cotangents."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import ia_core
from ia_core import (
    BoxMLP,
    EdgeMLP,
    Grid,
    LinearOffset,
    OffsetMLP,
    OffsetTable,
    PiecewiseLinear,
    PositionBias,
    init_multi_head,
    multi_head_attention,
    to_library,
)
from ia_core.backends import explain, indirect_attention, use_backend

from .test_backends_bounds import needs_native

torch = pytest.importorskip("torch")

H, HIDDEN, R, W = 2, 8, 2, 3
RANDOM = np.random.default_rng(4)


def numbers(*shape: int) -> Any:
    return torch.asarray(RANDOM.normal(size=shape))


def functions(kind: str, count: int) -> tuple[Any, ...]:
    """Arrays of so many functions of one kind, side by side."""
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {
        "mlp": ((HIDDEN,), (HIDDEN,), (HIDDEN, H), (H,)),
        "table": ((H, 5),),
        "linear": ((H,),),
        "lines": ((3,), (7, H), (7, H)),
        "box": ((2, HIDDEN), (HIDDEN,), (HIDDEN, H), (H,)) * 2,
    }
    made = [numbers(count, *shape) for shape in shapes[kind]]
    if kind == "lines":
        made[0] = torch.sort(made[0]).values
    return tuple(made)


def bias_of(kind: str, arrays: Any, places: Any) -> PositionBias:
    if kind == "box":
        grid = Grid(torch.arange(W), torch.arange(R))
        return PositionBias(BoxMLP(EdgeMLP(*arrays[:4]), EdgeMLP(*arrays[4:])), places, grid)
    made = {"mlp": OffsetMLP, "table": OffsetTable, "linear": LinearOffset, "lines": PiecewiseLinear}[kind]
    return PositionBias(made(*arrays), places, torch.arange(R * W))


# PyTorch's own rule for searchsorted lays knots and offsets out in a way that it then warns of.
@pytest.mark.filterwarnings("ignore:torch.searchsorted")
@pytest.mark.parametrize("kind", ["mlp", "table", "linear", "lines", "box"])
@pytest.mark.parametrize("over", ["positions", "parameters", "both"])
@pytest.mark.parametrize("function", [ia_core.indirect_attention, indirect_attention], ids=["reference", "dispatch"])
def test_every_bias_function_may_be_mapped(kind: str, over: str, function: Any) -> None:
    rows = [numbers(H, n, 4) for n in (5, R * W, R * W)]
    parameters, places = functions(kind, 3), 3 * numbers(3, 5, *((4,) if kind == "box" else ()))

    def attend(arrays: Any, at: Any) -> Any:
        return function(*rows, bias=bias_of(kind, arrays, at))

    mapped = {"positions": (None, 0), "parameters": (0, None), "both": (0, 0)}[over]
    first = [tuple(array[0] for array in parameters), places[0]]
    given = [whole if axis == 0 else one for whole, one, axis in zip((parameters, places), first, mapped, strict=True)]
    got = torch.func.vmap(attend, in_dims=mapped)(*given)
    for n in range(3):
        its = [tuple(array[n] for array in parameters), places[n]]
        its = [own if axis == 0 else one for own, one, axis in zip(its, first, mapped, strict=True)]
        want = ia_core.indirect_attention(*rows, bias=bias_of(kind, *its))
        # float64, sums of a few tens of products of numbers near 1
        assert float((got[n] - want).abs().max()) <= 1e-12 * float(want.abs().max())


def test_layers_may_be_mapped() -> None:
    params = [to_library(init_multi_head(seed, 8, H, dtype="float64"), torch) for seed in range(3)]
    leaves, tree = zip(*(torch.utils._pytree.tree_flatten(one) for one in params), strict=True)
    given = [numbers(4, 8) for _ in range(3)]

    def layer(arrays: Any) -> Any:
        return multi_head_attention(torch.utils._pytree.tree_unflatten(arrays, tree[0]), *given)

    got = torch.func.vmap(layer)([torch.stack(parts) for parts in zip(*leaves, strict=True)])
    for one, its in zip(got, params, strict=True):
        want = multi_head_attention(its, *given)
        assert float((one - want).abs().max()) <= 1e-12 * float(want.abs().max())


@pytest.mark.parametrize("path", [pytest.param("torch-native", marks=needs_native), "torch-lines"])
def test_gradients_are_mapped_over_cotangents(path: str) -> None:
    """The call itself is in no transform, so it takes the kernel; its gradient is then mapped."""
    drawn = [numbers(H, 5, 4), 3 * numbers(5), *(array[0] for array in functions("mlp", 1))]
    leaves = [array.requires_grad_() for array in drawn]
    rows = [numbers(H, R * W, 4) for _ in range(2)]

    def attend(function: Any) -> Any:
        query, places, *parameters = leaves
        return function(query, *rows, bias=bias_of("mlp", parameters, places))

    cotangents = numbers(3, H, 5, 4)
    want = [torch.autograd.grad(attend(ia_core.indirect_attention), leaves, one) for one in cotangents]
    with use_backend(path):
        output = attend(indirect_attention)
        assert attend(explain).path == path
    once = torch.autograd.grad(output, leaves, cotangents, is_grads_batched=True, retain_graph=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="There is a performance drop")
        again = torch.func.vmap(lambda one: torch.autograd.grad(output, leaves, one, retain_graph=True))(cotangents)
    for found in (once, again):
        for n, gradients in enumerate(want):
            for got, one in zip(found, gradients, strict=True):
                assert float((got[n] - one).abs().max()) <= 1e-12 * max(1.0, float(one.abs().max()))
