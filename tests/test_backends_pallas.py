"""The Pallas kernels for JAX: what they decline, their arithmetic when interpreted, whether they lower for a GPU."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ia_core
from ia_core import BoxMLP, EdgeMLP, Grid, LinearOffset, OffsetMLP, OffsetTable, PiecewiseLinear, PositionBias
from ia_core.backends import available, indirect_attention, use_backend

from .test_backends_jax_native import TRANSFORMS, Inputs

jax = pytest.importorskip("jax")
jnp = jax.numpy


@pytest.fixture(autouse=True)
def double_precision() -> Any:
    with jax.enable_x64(True):
        yield


def on_pallas(*arrays: Any, **keywords: Any) -> Any:
    with use_backend("jax-pallas"):
        return indirect_attention(*arrays, **keywords)


def equal_results(got: Any, want: Any, within: float) -> None:
    """Every array beside its largest number."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        finite = jnp.isfinite(other)
        size = float(jnp.max(jnp.abs(jnp.where(finite, other, 0.0)), initial=0.0))
        np.testing.assert_array_equal(jnp.where(finite, 0.0, one), jnp.where(finite, 0.0, other))
        np.testing.assert_allclose(
            jnp.where(finite, one, 0.0), jnp.where(finite, other, 0.0), rtol=0, atol=within * size
        )


def call_of(M: int, N: int, *, hidden: int, H: int, Hk: int, D: int, Dv: int) -> tuple[list[Any], list[Any]]:
    """Query, key and value, and the parameters and positions of a network with knots all over its offsets."""
    random = np.random.default_rng([M, N, hidden])
    rows = [random.normal(size=(2, h, n, d)) for h, n, d in ((H, M, D), (Hk, N, D), (Hk, N, Dv))]
    w1 = random.normal(size=hidden)
    leaves = [w1, -w1 * random.uniform(-N, N, size=hidden), random.normal(size=(hidden, H)) / N, np.zeros(H)]
    leaves += [np.sort(random.uniform(0, N, size=(2, M))), np.arange(float(N))]
    return [jnp.asarray(array) for array in rows], [jnp.asarray(array) for array in leaves]


def network(leaves: list[Any]) -> PositionBias:
    return PositionBias(OffsetMLP(*leaves[:4]), *leaves[4:])


def results(function: Any, rows: list[Any], leaves: Any, bias_of: Callable[[Any], Any], mask: Any = None) -> Any:
    """Output, lse and all gradients."""

    def loss(rows: Any, leaves: Any) -> Any:
        output, lse = function(*rows, bias=bias_of(leaves), mask=mask, return_lse=True)
        weights = jnp.linspace(-1, 1, output.size).reshape(output.shape)
        return jnp.sum(output * weights) + jnp.sum(jnp.where(jnp.isinf(lse), 0.0, jnp.sin(lse))), (output, lse)

    return jax.grad(loss, argnums=(0, 1), has_aux=True)(rows, leaves)


SIZES = {
    "grouped heads": {"M": 5, "N": 7, "hidden": 4, "H": 2, "Hk": 1, "D": 3, "Dv": 5},
    "tiles on one line": {"M": 97, "N": 300, "hidden": 3, "H": 1, "Hk": 1, "D": 16, "Dv": 16},
    "tiles of many knots": {"M": 40, "N": 70, "hidden": 24, "H": 2, "Hk": 2, "D": 8, "Dv": 4},
}
slow = pytest.mark.slow  # XLA takes ten seconds to compile the kernels of a shape


@pytest.mark.parametrize(
    ("sizes", "masked"),
    [
        pytest.param(SIZES["grouped heads"], True, id="grouped heads"),
        *(
            pytest.param(sizes, masked, marks=slow, id=f"{name}, {masked}")
            for name, sizes in SIZES.items()
            for masked in (False, True)
        ),
    ],
)
def test_values_and_gradients_are_those_of_the_reference(sizes: dict[str, int], masked: bool) -> None:
    rows, leaves = call_of(**sizes)
    mask = None
    if masked:
        mask = jnp.asarray(np.random.default_rng(1).random((sizes["M"], sizes["N"])) < 0.6).at[0].set(False)
    got, want = (results(f, rows, leaves, network, mask) for f in (on_pallas, ia_core.indirect_attention))
    # Sums of some thousands of terms in float64, whose roundings add up like a random walk.
    equal_results(got, want, 1e-13)


def lowered(rows: list[Any], leaves: Any, bias_of: Callable[[Any], Any], mask: Any) -> list[str]:
    """Names of the kernels in what JAX would compile for a GPU, lowered by Pallas to Triton's language."""

    def gradients(rows: Any, leaves: Any) -> Any:
        def loss(rows: Any, leaves: Any) -> Any:
            return jnp.sum(on_pallas(*rows, bias=bias_of(leaves), mask=mask).astype(jnp.float32))

        return jax.grad(loss, argnums=(0, 1))(rows, leaves)

    traced = jax.jit(gradients).trace(rows, leaves)
    try:
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    except Exception as error:  # a later JAX also compiles it, for which it needs its CUDA plugin
        if "plugin" in str(error) or "not found" in str(error):
            pytest.skip(f"JAX {jax.__version__} does not lower for a GPU here: {error}")
        raise
    assert "triton" in text
    return re.findall(r'name = "(ia_core_\w+)"', text)


THREE = ["ia_core_forward", "ia_core_backward_queries", "ia_core_backward_keys"]


@pytest.mark.parametrize(
    "dtype", [pytest.param("float32", marks=slow), pytest.param("bfloat16", marks=slow), "float16"]
)
@pytest.mark.parametrize("double", [True, pytest.param(False, marks=slow)])
def test_they_lower_for_a_gpu(dtype: str, double: bool) -> None:
    with jax.enable_x64(double):
        rows, leaves = call_of(M=200, N=333, hidden=24, H=4, Hk=2, D=64, Dv=40)
        rows, leaves = [array.astype(dtype) for array in rows], [array.astype("float32") for array in leaves]
        mask = jnp.ones((200, 333), bool).at[3].set(False)
        assert lowered(rows, leaves, network, mask) == THREE


def test_a_matrix_lowers_for_a_gpu_with_its_gradient() -> None:
    rows, _ = call_of(M=70, N=33, hidden=1, H=4, Hk=2, D=64, Dv=40)
    rows = [array.astype("bfloat16") for array in rows]
    matrix = jnp.zeros((4, 1, 33), "float32")
    assert lowered(rows, matrix, lambda leaf: leaf, None) == [*THREE, "ia_core_backward_matrix"]


def test_they_are_for_those_who_ask() -> None:
    names = [path.name for path in available()]
    assert names.index("jax-jit") < names.index("jax-pallas")  # jax-jit declines nothing


def test_what_they_decline() -> None:
    rows = [jnp.ones((1, 4, 4), "float32")] * 3
    wide = [jnp.ones((1, 4, 300), "float32")] * 3
    edge = EdgeMLP(*(jnp.ones(shape, "float32") for shape in ((2, 3), (3,), (3, 1), (1,))))
    grid = Grid(*(jnp.arange(2.0, dtype="float32"),) * 2)
    boxes = PositionBias(BoxMLP(edge, edge), jnp.zeros((4, 4), "float32"), grid)
    tables = [jnp.ones((10001, 1), "float32")] * 2
    many = PositionBias(PiecewiseLinear(jnp.arange(5000.0, dtype="float32"), *tables), *[jnp.arange(4)] * 2)
    assert declined(wide) == "its tiles hold rows of up to 256 numbers; these have 300"
    assert declined(rows, bias=boxes) == "it evaluates functions of one offset; a BoxMLP is one of two"
    assert declined(rows, bias=many) == "its tables hold up to 4096 knots; the bias has 5000"
    said = []

    def told(query: Any) -> Any:
        said.append(declined([query, *rows[1:]]))
        return jnp.sum(query)

    jax.jvp(told, (rows[0],), (rows[0],))
    assert said == ["`query` carries a tangent; the kernel has no forward derivative"]


def declined(rows: list[Any], **keywords: Any) -> str:
    with pytest.raises(ValueError, match="IA-X-23") as caught:
        on_pallas(*rows, **keywords)
    found = re.search(r"declines this call: (.*) \[IA-X-23\]", str(caught.value))
    assert found is not None
    return found[1]


@slow
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_equal_those_of_the_reference(transform: Callable[[Any, Inputs], Any]) -> None:
    got, want = (transform(function, Inputs()) for function in (on_pallas, ia_core.indirect_attention))
    equal_results(got, want, 1e-12)


@slow
@pytest.mark.parametrize("shape", [(2, 3, 40, 70), (1, 1, 40, 70), (2, 1, 1, 70), (3, 40, 1), (70,), (1, 3, 1, 1)])
def test_a_matrix_has_its_gradient_summed_over_what_it_was_broadcast_along(shape: tuple[int, ...]) -> None:
    rows, _ = call_of(M=40, N=70, hidden=1, H=3, Hk=1, D=5, Dv=4)
    random = np.random.default_rng(3)
    matrix = jnp.asarray(random.normal(size=shape))
    mask = jnp.asarray(random.random((2, 1, 1, 70)) < 0.7)
    got, want = (results(f, rows, matrix, lambda leaf: leaf, mask) for f in (on_pallas, ia_core.indirect_attention))
    equal_results(got, want, 1e-13)


@slow
@pytest.mark.parametrize("kind", ["mlp", "table", "linear", "lines"])
def test_offsets_on_knots_have_the_gradient_of_the_knot(kind: str) -> None:
    """Whole positions and knots at whole numbers, some of which coincide.

    Tables and penalties beside their lines: at its kinks JAX takes other derivatives of what they are written with.
    """
    random = np.random.default_rng(5)
    rows = [jnp.asarray(random.normal(size=(2, n, 3))) for n in (9, 40, 40)]
    places = [jnp.arange(9.0), jnp.arange(40.0)]

    def bias_of(leaves: Any, compile: Any = None) -> Any:
        *own, queries, values = leaves
        if kind == "lines":
            own = [jnp.asarray([-2.0, 0.0, 0.0, 0.0, 5.0]), *own]
        kinds = {"mlp": OffsetMLP, "table": OffsetTable, "linear": LinearOffset, "lines": PiecewiseLinear}
        f: Any = kinds[kind](*own)
        return PositionBias(f if compile is None else compile(f), queries, values)

    own = {
        "mlp": [jnp.asarray([1.0, -1.0, 2.0]), jnp.asarray([0.0, 0.0, -4.0]), jnp.ones((3, 2)) / 9, jnp.zeros(2)],
        "table": [jnp.asarray(random.normal(size=(2, 5)))],
        "linear": [jnp.asarray([0.1, 0.2])],
        "lines": [jnp.asarray(random.normal(size=(11, 2)) / 9) for _ in range(2)],
    }[kind]
    leaves = [*own, *places]
    lines = {"table": PiecewiseLinear.from_table, "linear": PiecewiseLinear.from_linear}.get(kind)
    got = results(on_pallas, rows, leaves, bias_of)
    want = results(ia_core.indirect_attention, rows, leaves, lambda leaves: bias_of(leaves, lines))
    equal_results(got, want, 1e-13)


@slow
def test_positions_behind_a_mask_may_be_anything() -> None:
    rows, leaves = call_of(6, 40, hidden=4, H=1, Hk=1, D=4, Dv=4)
    mask = jnp.ones(40, bool).at[-2:].set(False)
    wild = [*leaves[:-1], leaves[-1].at[-2].set(jnp.nan).at[-1].set(jnp.inf)]
    got, want = (results(on_pallas, rows, each, network, mask) for each in (wild, leaves))
    equal_results(got, want, 1e-13)


@slow
def test_whole_positions_beyond_the_reach_of_float32() -> None:
    with jax.enable_x64(False):
        rows = [jnp.ones((1, n, 4)).at[0, :, 0].set(jnp.arange(n) / 8) for n in (4, 6, 6)]
        f, far = LinearOffset(jnp.ones(1)), 2**30
        near, other = (PositionBias(f, jnp.arange(4) + at, jnp.arange(6) + at) for at in (0, far))
        assert jnp.array_equal(on_pallas(*rows, bias=near), on_pallas(*rows, bias=other))


@slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_rounded_once(dtype: str) -> None:
    """Beside the reference in float64: the error of the output is that of one rounding, and a little of float32's."""
    rows, leaves = call_of(M=33, N=130, hidden=8, H=2, Hk=1, D=16, Dv=24)
    rows, leaves = [array.astype(dtype) for array in rows], [array.astype("float32") for array in leaves]
    output, lse = on_pallas(*rows, bias=network(leaves), return_lse=True)
    wide = [array.astype("float64") for array in rows]
    true = ia_core.indirect_attention(*wide, bias=network([leaf.astype("float64") for leaf in leaves]))
    half = float(jnp.finfo(dtype).eps) / 2
    assert output.dtype == dtype and lse.dtype == "float32"
    error = jnp.abs(output.astype("float64") - true)
    assert float(jnp.max(error - half * jnp.abs(true))) <= 1e-5 * float(jnp.max(jnp.abs(true)))


@slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gradients_of_shared_keys_are_rounded_once(dtype: str) -> None:
    """Also where query heads that share keys have masks of their own."""
    rows, _ = call_of(M=9, N=12, hidden=1, H=6, Hk=2, D=8, Dv=4)
    rows = [array.astype(dtype) for array in rows]
    random = np.random.default_rng(7)
    mask = jnp.asarray(random.random((6, 9, 12)) < 0.7)
    weights = jnp.asarray(random.integers(-4, 5, (2, 6, 9, 4)) / 4)  # halves hold them

    def gradients(function: Any, rows: list[Any]) -> Any:
        return jax.grad(lambda rows: jnp.sum(function(*rows, mask=mask).astype("float64") * weights))(rows)

    true = gradients(ia_core.indirect_attention, [array.astype("float64") for array in rows])
    half = float(jnp.finfo(dtype).eps) / 2
    for name, got, want in zip(("query", "key", "value"), gradients(on_pallas, rows), true, strict=True):
        error = jnp.abs(got.astype("float64") - want)
        # One rounding to the half, and sums of some tens of float32's terms, each within 2^-24 of the largest.
        assert float(jnp.max(error - half * jnp.abs(want))) <= 1e-5 * float(jnp.max(jnp.abs(want))), name


@slow
def test_nothing_to_attend_to() -> None:
    rows = [jnp.ones((2, n, 4)) for n in (3, 0, 0)]
    output, lse = on_pallas(*rows, return_lse=True)
    assert jnp.all(output == 0.0) and jnp.all(lse == -math.inf) and output.shape == (2, 3, 4)
