"""The compiled bias is the same function: values, gradients, and what stands on a knot.

With u the roundoff of the working dtype, v that of the tables (float64), and A the units that are active at t: products
and sums of the tables are off by ``(hidden + 3) v (sum_A |w2| (|t w1| + |b1|) + |b2|)``, and one rounding is left. The
knots are rounded to the working dtype, so that one unit may be taken for inactive where t is its rounded knot: there it
is worth ``|w2| |t w1 + b1|``. The network itself rounds t w1, each sum and each product in the working dtype.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import array_api_strict
import numpy as np
import pytest

from ia_core import (
    LinearOffset,
    OffsetMLP,
    OffsetTable,
    PiecewiseLinear,
    PositionBias,
    indirect_attention,
    indirect_attention_vjp,
    relative_positions,
)

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
jax.config.update("jax_enable_x64", True)

H = 3
EXACT = np.longdouble
HIDDEN = (0, 1, 5, 64)


def network(kind: str, hidden: int, dtype: Any, seed: int = 0) -> OffsetMLP:
    """Knots of a normal ratio; all at 0; spread over the offsets; on offsets, each twice; some units without a knot."""
    random = np.random.default_rng([seed, hidden])
    w1, b1 = random.normal(size=(2, hidden))
    if kind == "zero":
        b1 = np.zeros(hidden)
    if kind == "spread":
        b1 = -w1 * random.uniform(-20, 20, size=hidden)
    if kind == "coincident":
        w1 = np.where(random.random(hidden) < 0.5, -2.0, 0.5)
        b1 = -w1 * (np.arange(hidden) // 2 % 7)
    if kind == "flat":
        w1[::2] = 0.0
        w1[1::4], b1[1::4] = 1e-30, 1e20  # a knot at -1e50, beyond float32
    w2, b2 = random.normal(size=(hidden, H)), random.normal(size=H)
    # As float32 the knots of 1e-30 are infinite, which is what they are there for.
    return OffsetMLP(*(part.astype(dtype) for part in (w1, b1, w2, b2)))


KINDS = ("normal", "zero", "spread", "coincident", "flat")


def positions(seed: int, dtype: Any) -> tuple[Any, Any]:
    """Real queries, of which every second is an integer, and integer values: many offsets are knots."""
    queries = np.random.default_rng(seed).uniform(-2, 22, size=24)
    queries[::2] = np.round(queries[::2])
    return queries.astype(dtype), np.arange(20)


def exact(f: OffsetMLP, t: Any) -> tuple[Any, Any, Any]:
    """f in long double, the sum of its terms' sizes, and what units on their rounded knots are worth."""
    w1, b1, w2, b2 = (part.astype(EXACT) for part in f)
    before = t.astype(EXACT)[..., None] * w1 + b1
    with np.errstate(all="ignore"):
        on = t[..., None] == (-f.b1.astype(np.float64) / f.w1).astype(f.w1.dtype)
    active = np.where(before > 0, before, 0)
    sizes = (before > 0) * (np.abs(t[..., None] * w1) + np.abs(b1))
    heads = [active @ w2 + b2, sizes @ np.abs(w2) + np.abs(b2), (on * np.abs(before)) @ np.abs(w2)]
    true, size, on_knot = (np.moveaxis(array, -1, -3) for array in heads)
    return true, size, on_knot


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_within_the_derived_bound(kind: str, hidden: int, dtype: Any) -> None:
    f = network(kind, hidden, dtype)
    t = f.offsets(*positions(hidden, dtype))
    got = PiecewiseLinear.from_mlp(f)(t)
    assert got.dtype == dtype and got.shape == (H, 24, 20)
    true, size, on_knot = exact(f, t)
    u, v = np.finfo(dtype).eps / 2, np.finfo(np.float64).eps / 2
    v += np.finfo(EXACT).eps
    bound = u * np.abs(true) + (hidden + 3) * v * size + on_knot
    error = np.abs(got - true)
    assert np.all(error <= bound), f"error {np.max(error / bound):.3g} times the bound"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("hidden", [4, 32, 512])
@pytest.mark.parametrize("kind", ["normal", "zero", "spread"])
def test_it_is_at_least_as_accurate_as_the_network(kind: str, hidden: int, dtype: Any) -> None:
    """The largest error of 480 offsets in 3 heads, averaged over so many networks, beside that of the networks.

    In float64 the tables have no more digits than the network; in float32 they have.
    """
    compiled, plain = [], []
    for seed in range(3 if hidden == 512 else 24):
        f = network(kind, hidden, dtype, seed)
        t = f.offsets(*positions(seed, dtype))
        true = exact(f, t)[0]
        compiled.append(float(np.max(np.abs(PiecewiseLinear.from_mlp(f)(t) - true))))
        plain.append(float(np.max(np.abs(f(t) - true))))
    assert np.mean(compiled) <= (0.5 if dtype is np.float32 else 1.0) * np.mean(plain)


def test_the_bound_refuses_a_table_of_single_precision() -> None:
    f = network("spread", 64, np.float64)
    t = f.offsets(*positions(0, np.float64))
    coarse = PiecewiseLinear.from_mlp(OffsetMLP(*(part.astype(np.float32) for part in f)))(t.astype(np.float32))
    true, size, on_knot = exact(f, t)
    assert np.any(np.abs(coarse - true) > 2**-53 * np.abs(true) + 67 * 2**-53 * size + on_knot)


def torch_gradients(f: Any, compile_it: bool, queries: Any, cotangent: Any) -> list[Any]:
    leaves = [torch.tensor(part, requires_grad=True) for part in (*f, queries)]
    g = OffsetMLP(*leaves[:4])
    g = PiecewiseLinear.from_mlp(g) if compile_it else g
    bias = PositionBias(g, leaves[4], torch.arange(20)).dense()
    (bias * torch.as_tensor(cotangent)).sum().backward()
    return [leaf.grad.numpy() for leaf in leaves]


def jax_gradients(f: Any, compile_it: bool, queries: Any, cotangent: Any) -> list[Any]:
    def loss(parts: Any, queries: Any) -> Any:
        g = OffsetMLP(*parts)
        g = PiecewiseLinear.from_mlp(g) if compile_it else g
        return (PositionBias(g, queries, jax.numpy.arange(20)).dense() * cotangent).sum()

    parts, at = jax.jit(jax.grad(loss, argnums=(0, 1)))(tuple(map(jax.numpy.asarray, f)), jax.numpy.asarray(queries))
    return [np.asarray(array) for array in (*parts, at)]


@pytest.mark.parametrize("gradients", [torch_gradients, jax_gradients])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_network(kind: str, gradients: Callable[..., list[Any]]) -> None:
    """Of the parameters and the positions; also on knots, where the ReLU has the derivative 0."""
    f = network(kind, 5, np.float64)
    if kind == "flat":  # float64 holds the knot of 1e-30
        f = f._replace(b1=np.where(f.b1 == 1e20, 1.0, f.b1))
    queries, _ = positions(3, np.float64)
    cotangent = np.random.default_rng(4).normal(size=(H, 24, 20))
    found = [gradients(f, compile_it, queries, cotangent) for compile_it in (True, False)]
    # All terms positive and the offsets at their largest: more than the sum of the sizes of any gradient's terms.
    sizes = torch_gradients(OffsetMLP(*map(np.abs, f)), False, np.full(24, -22.0), np.abs(cotangent))
    for got, want, size in zip(*found, sizes, strict=True):
        # Sums of 480 offsets and 3 heads on both sides, and of 5 units in the tables, in the worst case.
        assert np.all(np.abs(got - want) <= 2 * (480 + 3 + 5 + 10) * 2**-53 * np.abs(size))


def test_on_a_knot_the_unit_is_not_active() -> None:
    f = OffsetMLP(np.asarray([1.0, -1.0]), np.zeros(2), np.ones((2, 1)), np.zeros(1))
    g = PiecewiseLinear.from_mlp(f)
    assert g.cells(np.asarray([-1.0, 0.0, 1.0])).tolist() == [0, 1, 4]
    assert g.slopes[[0, 1, 4], 0].tolist() == [-1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("w1", "b1", "want"),
    [
        (0.0, 1.0, [2.0, 2.0]),
        (0.0, 0.0, [0.0, 0.0]),
        (0.0, -1.0, [0.0, 0.0]),
        (1.0, np.inf, [np.inf, np.inf]),
        (1.0, -np.inf, [0.0, 0.0]),
        (-1.0, np.inf, [np.inf, np.inf]),
        (-1.0, -np.inf, [0.0, 0.0]),
        (np.nan, 1.0, [np.nan, np.nan]),
        (1.0, np.nan, [np.nan, np.nan]),
        (0.0, np.nan, [np.nan, np.nan]),
        (5e-324, -1.0, [0.0, 0.0]),
        (-5e-324, 1.0, [2.0, 2.0]),
    ],
)
def test_units_without_a_finite_knot(w1: float, b1: float, want: list[float]) -> None:
    f = OffsetMLP(np.asarray([w1]), np.asarray([b1]), np.asarray([[2.0]]), np.zeros(1))
    t = np.asarray([[-3.0, 4.0]])
    np.testing.assert_array_equal(f(t)[0, 0], want)
    np.testing.assert_array_equal(PiecewiseLinear.from_mlp(f)(t)[0, 0], want)


TABLES = [[1.0, -2.0, 4.0], [5.0], [-np.inf, 0.5, 2.0, np.inf, 1.0], [-np.inf, 0.0, -np.inf], [-np.inf]]


@pytest.mark.parametrize("values", [[table] for table in TABLES])
def test_a_table_is_the_same_function(values: Any) -> None:
    f = OffsetTable(np.asarray(values))
    t = np.asarray([[-7.0, -2.0, -1.5, -1.0, -0.25, 0.0, 0.5, 1.0, 1.75, 2.0, 9.0]])
    np.testing.assert_array_equal(PiecewiseLinear.from_table(f)(t), f(t))
    assert not np.any(np.isnan(f(t)))


@pytest.mark.parametrize(
    ("values", "want"), [([1.0, -2.0, 4.0], [-3.0, 6.0, 6.0, 0.0]), ([-np.inf, 0.0, -np.inf], [0.0] * 4)]
)
def test_a_table_has_the_derivative_of_the_line_to_its_right(values: list[float], want: list[float]) -> None:
    leaves = [torch.tensor([values], dtype=torch.float64), torch.tensor([-1.0, 0.0, 0.5, 1.0])]
    found = []
    for g in (OffsetTable(leaves[0]), PiecewiseLinear.from_table(OffsetTable(leaves[0]))):
        t = leaves[1].double().requires_grad_()
        (grad,) = torch.autograd.grad(g(t[None]).sum(), t)
        found.append(grad.tolist())
    assert found[0] == found[1] == want


def test_a_linear_offset_is_the_same_function() -> None:
    f = LinearOffset(np.asarray([0.5, 0.0, -1.0]))
    t = np.asarray([[-2.0, -0.5, 0.0, 3.0]])
    np.testing.assert_array_equal(PiecewiseLinear.from_linear(f)(t), f(t))


def test_a_table_that_ends_in_infinity_is_a_window() -> None:
    random = np.random.default_rng(3)
    q, k, v = (random.normal(size=(1, n, 4)) for n in (5, 7, 7))
    offsets = relative_positions(5, 7)
    window = PositionBias(OffsetTable(np.asarray([[-np.inf, 0.0, 0.0, 0.0, -np.inf]])), np.arange(5), np.arange(7))
    want = indirect_attention(q, k, v, mask=np.abs(offsets) < 2)
    np.testing.assert_allclose(indirect_attention(q, k, v, bias=window), want, rtol=0, atol=1e-14)


def test_a_table_in_jax_as_it_comes() -> None:
    """Without float64 and int64, and warnings of what is not there."""
    with jax.enable_x64(False), warnings.catch_warnings():
        warnings.simplefilter("error")
        found = OffsetTable(jax.numpy.asarray([[1.0, 2.0, 4.0]]))(jax.numpy.asarray([[-7.0, 0.5, 1.0]]))
    np.testing.assert_array_equal(found, [[[1.0, 3.0, 4.0]]])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_as_the_bias_of_a_call(dtype: str) -> None:
    """The dtype is the working dtype of the parameters, as the network's is."""
    to = getattr(torch, dtype)
    f = OffsetMLP(*(torch.as_tensor(part).to(to) for part in network("spread", 5, np.float64)))
    g = PiecewiseLinear.from_mlp(f)
    assert g.dtype == f.dtype and g.slopes.dtype == torch.float64 and g.heads == f.heads == H
    queries, values = positions(1, np.float32)
    random = np.random.default_rng(2)
    q, k, v = (torch.as_tensor(random.normal(size=(H, n, 4))).to(to) for n in (24, 20, 20))
    at = torch.as_tensor(queries).to(f.dtype)
    outputs = [indirect_attention(q, k, v, bias=PositionBias(h, at, torch.as_tensor(values))) for h in (f, g)]
    assert outputs[1].dtype == to
    gap = (outputs[0] - outputs[1]).abs().max()
    assert gap <= 100 * torch.finfo(to).eps


def test_every_library_has_the_same_values() -> None:
    f = network("spread", 5, np.float64)
    t = f.offsets(*positions(1, np.float64))
    want = PiecewiseLinear.from_mlp(f)(t)
    for give, take in (
        (array_api_strict.asarray, np.asarray),
        (torch.as_tensor, lambda array: array.numpy()),
        (jax.numpy.asarray, np.asarray),
    ):
        got = take(PiecewiseLinear.from_mlp(OffsetMLP(*map(give, f)))(give(t)))
        assert np.max(np.abs(got - want)) <= 20 * 2**-53 * 400


def test_where_there_is_no_float64_the_tables_are_in_float32() -> None:
    with jax.enable_x64(False):
        f = network("spread", 64, np.float32)
        g = PiecewiseLinear.from_mlp(OffsetMLP(*map(jax.numpy.asarray, f)))
        assert g.slopes.dtype == g.knots.dtype == np.float32
        t = f.offsets(*positions(1, np.float32))
        true, size, on_knot = exact(f, t)
        u = np.finfo(np.float32).eps / 2
        assert np.all(np.abs(np.asarray(g(jax.numpy.asarray(t))) - true) <= 68 * u * size + on_knot)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (
            lambda: PiecewiseLinear.from_mlp(LinearOffset(np.ones(1))),
            TypeError,
            "`f` must be of the class OffsetMLP; got LinearOffset [IA-X-14]",
        ),
        (
            lambda: PiecewiseLinear(np.ones(2), np.ones((4, 1)), np.ones((4, 1))).check(),
            ValueError,
            "`PiecewiseLinear.slopes` must have shape (2 K + 1, H), K = 2; got (4, 1) [IA-X-14]",
        ),
        (
            lambda: PiecewiseLinear(np.ones((2, 1)), np.ones((5, 1)), np.ones((5, 1))).check(),
            ValueError,
            "`PiecewiseLinear.knots` must have shape (2,); got (2, 1) [IA-X-14]",
        ),
        (
            lambda: PiecewiseLinear(np.ones(2), np.ones((5, 1)), np.ones((5, 2))).check(),
            ValueError,
            "`PiecewiseLinear.intercepts` must have shape (5, 1); got (5, 2) [IA-X-14]",
        ),
        (
            lambda: PiecewiseLinear(np.ones(2), np.ones((5, 1), np.float32), np.ones((5, 1), np.float32)).check(),
            TypeError,
            "`PiecewiseLinear` must have slopes and intercepts of one dtype, float64; "
            "got float32 and float32 [IA-X-14]",
        ),
        (
            lambda: PiecewiseLinear(np.ones(2), np.ones((5, 1), int), np.ones((5, 1))).check(),
            TypeError,
            "`PiecewiseLinear.slopes` must be float16, bfloat16, float32 or float64; got int64 [IA-X-03]",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value) == text


def test_the_closed_form_refuses_it_and_says_what_helps() -> None:
    q = np.ones((1, 2, 4))
    bias = PositionBias(PiecewiseLinear.from_linear(LinearOffset(np.ones(1))), np.arange(2.0), np.arange(2.0))
    with pytest.raises(TypeError, match=r"got PiecewiseLinear; give bias.dense\(\)"):
        indirect_attention_vjp(q, q, q, q, bias=bias)
