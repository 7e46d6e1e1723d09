"""What the tests of the backends share: libraries, cases, and how far a result may be from the true value.

With u the unit roundoff of the working dtype, the true weights a, scores s and output o (in long double), and the
usual model of rounding (Higham, Accuracy and Stability of Numerical Algorithms, sections 3.1 and 4.2):

- a score is off by at most ``d = u ((D + 6) scale |q|.|k| + 2 |s| + 2 |b| + |s - top|) + d_bias``: a product of D
  terms in any order, the scale, the sum with the bias b, the difference from the row's maximum.
- the weights of scores off by d give ``|o' - o| <= exp(max d) sum_j a_j (exp(d_j) - 1) |v_j - o|``, exactly.
- exponentials, their sum, the division and the sum over the values add ``u (2 N + 16) sum_j a_j |v_j|``.
- one rounding to the output's dtype.

The long double itself is held to the same bound with its own u. Nothing else is allowed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

import ia_core
from ia_core import BoxMLP, EdgeMLP, Grid, LinearOffset, OffsetMLP, OffsetTable, PositionBias
from ia_core.backends import _native

DTYPES = {"float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
WORKING = {"float64": np.float64, "float32": np.float32, "float16": np.float32, "bfloat16": np.float32}
EXACT = np.longdouble


class Case(NamedTuple):
    """A call in NumPy; `bias` may be a PositionBias."""

    query: Any
    key: Any
    value: Any
    bias: Any = None
    mask: Any = None
    scale: float | None = None

    @property
    def keywords(self) -> dict[str, Any]:
        return {"bias": self.bias, "mask": self.mask, "scale": self.scale}


class Library(NamedTuple):
    """A library: an array of NumPy to one of its own, and back to NumPy."""

    name: str
    give: Callable[[Any], Any]
    take: Callable[[Any], Any]
    skip: str | None = None


def _torch_give(array: Any) -> Any:
    import torch

    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.asarray(array))


def _torch_take(array: Any) -> Any:
    return array.detach().double().numpy()


def _jax_give(array: Any) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(array)


def _cupy_give(array: Any) -> Any:
    import cupy

    return cupy.asarray(array)


def _why_no_cupy() -> str | None:
    if importlib.util.find_spec("cupy") is None:
        return "cupy is not installed"
    import cupy

    try:
        return None if cupy.cuda.runtime.getDeviceCount() else "no CUDA device"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"no CUDA device: {error}"


LIBRARIES = {
    "numpy": Library("numpy", lambda array: array, np.asarray),
    "torch": Library("torch", _torch_give, _torch_take),
    "jax": Library("jax", _jax_give, np.asarray),
    "cupy": Library("cupy", _cupy_give, lambda array: array.get(), _why_no_cupy()),
}
NATIVE = _native.why_not()
needs_native = pytest.mark.skipif(NATIVE is not None, reason=str(NATIVE))
# What a plain call takes.
NUMPY, JAX = ("numpy-native", "jax-native") if NATIVE is None else ("numpy-tiled", "jax-jit")


def _skip(library: str, path: str) -> str | None:
    return NATIVE if path.endswith("-native") else LIBRARIES[library].skip


PATHS = [
    pytest.param(
        LIBRARIES[library],
        path,
        id=path,
        marks=pytest.mark.skipif(bool(_skip(library, path)), reason=str(_skip(library, path))),
    )
    for library, path in (
        ("numpy", "numpy-native"),
        ("numpy", "numpy-tiled"),
        ("torch", "torch-sdpa"),
        ("torch", "torch-tiled"),
        ("jax", "jax-jit"),
        ("cupy", "cupy-tiled"),
    )
]


def tree_map(f: Callable[[Any], Any], tree: Any) -> Any:
    """Apply to every array of a PositionBias or Case; None and numbers stay."""
    if isinstance(tree, tuple):
        return type(tree)(*(tree_map(f, part) for part in tree))
    return f(tree) if hasattr(tree, "dtype") else tree


def given(library: Library, case: Case) -> Case:
    return tree_map(library.give, case)


def function_of(kind: str, H: int, dtype: Any, random: np.random.Generator) -> Any:
    """A bias function with random parameters."""

    def draw(*shape: int) -> Any:
        return random.normal(size=shape).astype(dtype)

    def edge() -> EdgeMLP:
        return EdgeMLP(draw(2, 3), draw(3), draw(3, H), draw(H))

    return {
        "mlp": lambda: OffsetMLP(draw(5), draw(5), draw(5, H), draw(H)),
        "table": lambda: OffsetTable(draw(H, 5)),
        "linear": lambda: LinearOffset(draw(H)),
        "box": lambda: BoxMLP(edge(), edge()),
    }[kind]()


def position_bias(
    kind: str, batch: tuple[int, ...], H: int, M: int, N: int, dtype: Any, random: np.random.Generator
) -> PositionBias:
    """A PositionBias; a box's grid has one row of N pixels. Positions are quarters, hence exact in halves."""
    f = function_of(kind, H, dtype, random)
    if kind == "box":
        boxes = random.integers(0, 4 * (N + 1), size=(*batch, M, 4)) / 4
        return PositionBias(f, boxes.astype(dtype), Grid(np.arange(N, dtype=dtype), np.zeros(1, dtype)))
    queries = random.integers(-8, 4 * (N + 1), size=(*batch, M)) / 4
    return PositionBias(f, queries.astype(dtype), np.arange(N))


class Truth(NamedTuple):
    """True values in long double, and their bounds; every array is over (..., H, M, ...)."""

    weights: Any
    output: Any
    lse: Any
    score_error: Any  # d of the module's docstring
    empty: Any  # rows with nothing to attend to


def truth_of(case: Case, u: float) -> Truth:
    """The specification once more, plainly and in long double."""
    q, k, v = (np.asarray(array).astype(EXACT) for array in case[:3])
    H, D = q.shape[-3], q.shape[-1]
    k, v = (np.repeat(array, H // array.shape[-3], axis=-3) for array in (k, v)) if H else (k, v)
    scale = 1 / np.sqrt(EXACT(D)) if case.scale is None else EXACT(case.scale)
    shape = (*q.shape[:-1], k.shape[-2])
    bias, bias_error = _bias(case, u)
    bias = np.broadcast_to(bias, shape)
    forbidden = np.zeros(shape, bool) if case.mask is None else ~np.broadcast_to(case.mask, shape)
    forbidden = forbidden | np.isneginf(bias)
    bias = np.where(forbidden, 0, bias)
    s = np.where(forbidden, -np.inf, scale * q @ np.swapaxes(k, -1, -2) + bias)
    top = np.max(s, axis=-1, keepdims=True, initial=-np.inf)
    empty = np.isneginf(top)
    top = np.where(empty, 0, top)
    exps = np.exp(s - top)
    total = np.where(empty, 1, np.sum(exps, axis=-1, keepdims=True))
    finite = np.where(forbidden, 0, s)
    products = scale * np.abs(q) @ np.swapaxes(np.abs(k), -1, -2)
    error = u * ((D + 6) * products + 2 * np.abs(finite) + 2 * np.abs(bias) + np.abs(finite - top)) + bias_error
    lse = np.where(empty, -np.inf, top + np.log(total))[..., 0]
    weights = exps / total
    return Truth(weights, weights @ v, lse, np.where(forbidden, 0, error), empty[..., 0])


def _bias(case: Case, u: float) -> tuple[Any, Any]:
    """The bias, and how far that of a function may be off: its own terms, all taken positive, times their number."""
    if case.bias is None:
        return EXACT(0), EXACT(0)
    if not isinstance(case.bias, PositionBias):
        return case.bias.astype(EXACT), EXACT(0)
    exact = _in_double(case.bias)
    size = tree_map(np.abs, exact.f)(tree_map(np.abs, exact.f.offsets(*exact[1:])))
    widest = max(array.shape[0] for _, array in exact.named_arrays() if array.ndim and array.size)
    hidden = widest if isinstance(exact.f, OffsetMLP | BoxMLP) else 0
    # The double that stands for the truth is off by its own roundoff, which is far below u or as large as u.
    return exact.dense().astype(EXACT), 2 * u * (2 * hidden + 10) * np.abs(size).astype(EXACT)


def _in_double(bias: PositionBias) -> PositionBias:
    return tree_map(lambda array: array.astype(np.float64), bias)


def check(case: Case, output: Any, lse: Any, dtype: str) -> None:
    """Assert that a result is within its bound of the truth; ``lse`` may be None."""
    working, rounded = WORKING[dtype], DTYPES[dtype]
    u = float(np.finfo(working).eps) / 2 + float(np.finfo(EXACT).eps)
    truth = truth_of(case, u)
    assert output.shape == truth.output.shape
    error = np.abs(output.astype(EXACT) - truth.output)
    allowed = output_bound(case, truth, u, working)
    info = ml_dtypes.finfo(rounded)
    if rounded is not working:
        allowed = allowed + float(info.eps) / 2 * (np.abs(truth.output) + allowed) + float(info.smallest_subnormal)
    assert np.all(error <= allowed), f"error {np.max(error / allowed):.3g} times the bound"
    assert not np.any(output[truth.empty])
    if lse is None:
        return
    assert lse.shape == truth.lse.shape and np.array_equal(np.isneginf(lse), truth.empty)
    N = case.key.shape[-2]
    finite, top = np.where(truth.empty, 0, truth.lse), np.max(truth.score_error, axis=-1, initial=0)
    gap = np.abs(np.where(truth.empty, 0, lse).astype(EXACT) - finite)
    # The row's maximum is within log N of the lse.
    assert np.all(gap <= top + u * (N + 8 + 4 * np.abs(finite) + 2 * np.log(max(N, 1))))


def output_bound(case: Case, truth: Truth, u: float, working: Any) -> Any:
    """The bound of the module's docstring, before the last rounding."""
    H, N = case.query.shape[-3], case.key.shape[-2]
    v = np.asarray(case.value).astype(EXACT)
    v = np.repeat(v, H // v.shape[-3], axis=-3) if H else v
    worst = np.exp(np.max(truth.score_error, axis=-1, initial=0))[..., None]
    moved = truth.weights * np.expm1(truth.score_error)
    spread = np.abs(v[..., None, :, :] - truth.output[..., :, None, :])  # (..., H, M, N, Dv)
    lost = N * float(np.finfo(working).tiny) * np.max(np.abs(v), initial=0)  # weights flushed to zero
    return worst * np.sum(moved[..., None] * spread, axis=-2) + u * (2 * N + 16) * truth.weights @ np.abs(v) + lost


def numbers(seed: int, *shape: int, dtype: str = "float64") -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_is_within_the_bound(dtype: str) -> None:
    case = Case(*(numbers(seed, 2, 7, 4, dtype=dtype) for seed in range(3)))
    output, lse = ia_core.indirect_attention(*case[:3], return_lse=True)
    check(case, output, lse, dtype)


@pytest.mark.parametrize(
    ("dtype", "computed_in"), [("float64", "float32"), ("float32", "float16"), ("float16", "bfloat16")]
)
def test_the_bound_refuses_the_precision_below(dtype: str, computed_in: str) -> None:
    case = Case(*(numbers(seed, 2, 7, 4, dtype=dtype) for seed in range(3)))
    coarse = [array.astype(DTYPES[computed_in]) for array in case[:3]]
    with pytest.raises(AssertionError, match="times the bound"):
        check(case, ia_core.indirect_attention(*coarse).astype(DTYPES[dtype]), None, dtype)


def test_the_bound_refuses_weights_rounded_to_halves() -> None:
    case = Case(*(numbers(seed, 2, 40, 4, dtype="bfloat16") for seed in range(3)))
    weights = ia_core.attention_weights(*case[:2]).astype(np.float32)
    with pytest.raises(AssertionError, match="times the bound"):
        check(case, (weights @ case.value.astype(np.float32)).astype(DTYPES["bfloat16"]), None, "bfloat16")


def test_the_bound_refuses_a_scale_slightly_off() -> None:
    case = Case(*(numbers(seed, 2, 7, 4, dtype="float32") for seed in range(3)))
    with pytest.raises(AssertionError, match="times the bound"):
        check(case, ia_core.indirect_attention(*case[:3], scale=0.5001), None, "float32")
