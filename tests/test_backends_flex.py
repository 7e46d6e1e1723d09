"""torch-flex-knots: flex_attention with the bias as its score function, judged where there is no GPU."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ia_core
from ia_core import BoxMLP, EdgeMLP, Grid, LinearOffset, OffsetMLP, OffsetTable, PiecewiseLinear, PositionBias
from ia_core.backends import available, explain, indirect_attention, use_backend

torch = pytest.importorskip("torch")
pytest.importorskip("torch.nn.attention.flex_attention")

ROOT = Path(__file__).resolve().parents[1]
B, H, Hk, M, N, D, Dv = 2, 4, 2, 5, 6, 3, 5
KINDS = ("none", "matrix", "mlp", "lines", "table", "linear", "box", "whole")


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Gradients and the lse on the CPU, by PyTorch's own plain definition of the operator."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from flex_on_cpu import by_plain_operations

    with by_plain_operations():
        yield
    sys.modules.pop("flex_on_cpu")


def leaf(random: np.random.Generator, *shape: int) -> Any:
    return torch.as_tensor(random.normal(size=shape)).float().requires_grad_()


def bias_of(kind: str, random: np.random.Generator) -> Any:
    if kind == "none":
        return None
    if kind == "matrix":
        return leaf(random, H, 1, N)
    if kind == "box":
        edges = [EdgeMLP(leaf(random, 2, 3), leaf(random, 3), leaf(random, 3, H), leaf(random, H)) for _ in range(2)]
        return PositionBias(BoxMLP(*edges), leaf(random, M, 4), Grid(torch.arange(3.0), torch.arange(2.0)))
    mlp = OffsetMLP(leaf(random, 7), leaf(random, 7), leaf(random, 7, H), leaf(random, H))
    functions: dict[str, Any] = {
        "mlp": mlp,
        "lines": PiecewiseLinear(*(part.detach() for part in PiecewiseLinear.from_mlp(mlp))),
        "table": OffsetTable(leaf(random, H, 5)),
        "linear": LinearOffset(leaf(random, H)),
    }
    if kind == "whole":
        return PositionBias(mlp, torch.arange(M), torch.arange(N))
    places = torch.as_tensor(random.uniform(-2, N, size=(B, M))).float().requires_grad_()
    return PositionBias(functions[kind], places, torch.arange(float(N)).flip(0))


def leaves_of(bias: Any) -> list[Any]:
    arrays = dict(bias.named_arrays()).values() if isinstance(bias, PositionBias) else [bias]
    return [array for array in arrays if array is not None and array.requires_grad]


def results(function: Any, arrays: list[Any], bias: Any, mask: Any) -> list[Any]:
    """Output, lse and all gradients."""
    output, lse = function(*arrays, bias=bias, mask=mask, return_lse=True)
    loss = (output * torch.linspace(-1, 1, output.numel()).reshape(output.shape)).sum()
    loss = loss + torch.where(torch.isinf(lse), 0.0, lse).sin().sum()
    return [one.detach() for one in (output, lse, *torch.autograd.grad(loss, [*arrays, *leaves_of(bias)]))]


def wide(bias: Any) -> Any:
    """The same bias in float64."""
    if isinstance(bias, PositionBias):
        return PositionBias(*(wide(part) for part in bias))
    if isinstance(bias, tuple):
        return type(bias)(*(wide(part) for part in bias))
    if bias is None or not bias.is_floating_point():
        return bias
    return bias.detach().double().requires_grad_(bias.requires_grad)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_the_reference(kind: str, masked: bool, plainly: None) -> None:
    random = np.random.default_rng(KINDS.index(kind))
    arrays = [leaf(random, B, h, n, d) for h, n, d in ((H, M, D), (Hk, N, D), (Hk, N, Dv))]
    bias, mask = bias_of(kind, random), None
    if masked:
        mask = torch.as_tensor(random.random((B, 1, M, N)) < 0.6)
        mask[:, :, 0] = False
    with use_backend("torch-flex-knots"):
        found = results(indirect_attention, arrays, bias, mask)
    true = results(ia_core.indirect_attention, [a.detach().double().requires_grad_() for a in arrays], wide(bias), mask)
    for got, want in zip(found, true, strict=True):
        finite = torch.isfinite(want)
        assert torch.equal(got[~finite].double(), want[~finite])
        # Sums of at most B H M N = 240 terms of several roundings each, which add up like a random walk.
        assert (got - want)[finite].abs().max() <= 1e-5 * max(1.0, want[finite].abs().max())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_gradient_of_a_matrix_of_halves_is_rounded_once(dtype: Any, plainly: None) -> None:
    random = np.random.default_rng(9)
    arrays = [leaf(random, B, h, n, d).detach().to(dtype) for h, n, d in ((H, M, D), (Hk, N, D), (Hk, N, Dv))]
    bias = leaf(random, H, 1, N).detach().to(dtype).requires_grad_()
    weights = torch.as_tensor(random.integers(-4, 5, size=(B, H, M, Dv)) / 4)  # halves hold them
    found = []
    for path, given, of in (
        ("torch-flex-knots", arrays, bias),
        ("reference", [a.double() for a in arrays], wide(bias)),
    ):
        with use_backend(path):
            output = indirect_attention(*given, bias=of)
        found.append(torch.autograd.grad((output.double() * weights).sum(), of)[0].double())
    got, want = found
    # One rounding, and sums of float32 as above.
    assert ((got - want).abs() <= torch.finfo(dtype).eps / 2 * want.abs() + 1e-5).all()


@pytest.mark.parametrize("kind", ["mlp", "table"])
def test_offsets_on_knots_have_the_gradient_of_the_knot(kind: str, plainly: None) -> None:
    """Whole positions and knots at whole numbers: a ReLU has the derivative 0 at 0, on both of its sides."""
    q = torch.ones(1, 6, 2)
    places = torch.arange(6.0).requires_grad_()
    w1, b1 = torch.tensor([1.0, -1.0, 2.0]).requires_grad_(), torch.tensor([0.0, 0.0, -4.0]).requires_grad_()
    values = torch.tensor([[3.0, -1.0, 0.5, 2.0, -2.0]]).requires_grad_()
    mlp = OffsetMLP(w1, b1, torch.ones(3, 1).requires_grad_(), torch.zeros(1).requires_grad_())
    f = mlp if kind == "mlp" else OffsetTable(values)
    value = torch.linspace(0, 1, 12).reshape(1, 6, 2)
    found = []
    for path in ("torch-flex-knots", "reference"):
        with use_backend(path):
            output = indirect_attention(q, q, value, bias=PositionBias(f, places, places.detach()))
        found.append(torch.autograd.grad((output * value).sum(), [*f, places]))
    for got, want in zip(*found, strict=True):
        assert (got - want).abs().max() <= 1e-5 * max(1.0, want.abs().max())


def test_positions_behind_a_mask_may_be_anything(plainly: None) -> None:
    random = np.random.default_rng(0)
    arrays = [leaf(random, B, H, n, D) for n in (M, N, N)]
    bias = bias_of("mlp", random)
    mask = torch.ones(N, dtype=torch.bool)
    mask[-2:] = False
    wild = bias.value_positions.clone()
    wild[-2], wild[-1] = torch.nan, torch.inf
    with use_backend("torch-flex-knots"):
        want = results(indirect_attention, arrays, bias, mask)
        got = results(indirect_attention, arrays, bias._replace(value_positions=wild), mask)
    assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))


def test_infinite_offsets_have_the_bias_of_the_ends(plainly: None) -> None:
    q = torch.ones(1, 1, 2)
    bias = PositionBias(OffsetTable(torch.tensor([[3.0, -1.0, 2.0]])), torch.zeros(1), torch.tensor([-torch.inf, 0.0]))
    with use_backend("torch-flex-knots"):
        got = indirect_attention(q, q.expand(1, 2, 2), torch.eye(2)[None], bias=bias)
    assert (got - torch.softmax(torch.tensor([[[3.0, -1.0]]]), -1)).abs().max() <= 1e-6


def test_what_it_declines_on_the_cpu() -> None:
    q = torch.ones(1, 2, 4)
    reasons = {
        "flex_attention has no backward on the CPU": ([q.clone().requires_grad_(), q, q], {}),
        "compiled flex_attention does not give the lse on the CPU": ([q, q, q], {"return_lse": True}),
        "on a GPU flex_attention sums in float32; `query` is float64": ([q.double()] * 3, {}),
        "flex_attention does not take empty axes": ([q, q[:, :0], q[:, :0]], {}),
    }
    for reason, (arrays, keywords) in reasons.items():
        with use_backend("torch-flex-knots"), pytest.raises(ValueError, match="IA-X-23") as caught:
            indirect_attention(*arrays, **keywords)
        assert reason in str(caught.value)


def test_it_is_for_those_who_ask() -> None:
    names = [path.name for path in available()]
    assert names.index("torch-tiled") < names.index("torch-flex-knots")
    q = torch.ones(1, 2, 4)
    with use_backend("torch-flex-knots"):
        assert explain(q, q, q).path == "torch-flex-knots"


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="PyTorch's compiler needs one of C++")
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_for_the_cpu_it_is_the_reference(kind: str) -> None:
    random = np.random.default_rng(KINDS.index(kind))
    arrays = [leaf(random, B, h, n, d).detach() for h, n, d in ((H, M, D), (Hk, N, D), (Hk, N, Dv))]
    mask = torch.as_tensor(random.random((B, 1, M, N)) < 0.6)
    mask[:, :, 0] = False
    bias = bias_of(kind, random)
    with use_backend("torch-flex-knots"), torch.no_grad():
        got = indirect_attention(*arrays, bias=bias, mask=mask)
    want = ia_core.indirect_attention(*(array.double() for array in arrays), bias=wide(bias), mask=mask)
    # Six weights of a row, whose scores have a few roundings each.
    assert (got - want).abs().max() <= 1e-5 * max(1.0, want.abs().max())
