"""Gradients, transforms and compilers work through the paths of PyTorch and JAX as through the reference.

Two gradients that are both rounded in u = 2^-53 may differ by twice the bound of one. With the magnitude
``g_ij = a_ij sum_c (|do_ic| |v_jc| + |do_ic| |o_ic|)`` of the terms of a score's gradient, each is off by at most
``rel = u (4 (M + N + D + Dv) + 64) + 4 max (exp(d) - 1)`` of its terms' magnitudes: sums of so many products, and
weights that are off by twice the error d of the scores (test_backends_bounds). A sum over broadcast axes or over
positions adds u per term. Parameters and positions get the magnitudes through the absolute Jacobian of the bias.
"""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest

import ia_core
from ia_core import PositionBias
from ia_core.backends import explain, indirect_attention, use_backend

from .test_backends_bounds import LIBRARIES, Case, given, needs_native, position_bias, tree_map, truth_of

U = 2.0**-53
TORCH, JAX = LIBRARIES["torch"], LIBRARIES["jax"]
BIASES = ["none", "dense", "row", "-inf", "mlp", "table", "linear", "box"]
GRADIENTS = [
    *itertools.product(["torch"], ["torch-sdpa", "torch-tiled"], BIASES, [False, True]),
    *[
        pytest.param("torch", "torch-native", bias, masked, marks=needs_native)
        for bias, masked in itertools.product(["mlp", "table", "linear"], [False, True])
    ],
    *[
        pytest.param("jax", "jax-native", *some, marks=needs_native)
        for some in (("none", True), ("none", False), ("mlp", True), ("table", False), ("linear", True))
    ],
    # JAX compiles each for a second or two, so that it gets a few.
    *[
        ("jax", "jax-jit", *some)
        for some in (("none", True), ("dense", True), ("-inf", False), ("mlp", True), ("box", False))
    ],
]


@pytest.fixture(autouse=True)
def double_precision() -> Any:
    import jax

    with jax.enable_x64(True):
        yield


def case_with(bias: str, *, masked: bool, M: int = 5, N: int = 6) -> Case:
    """Two leading elements, four query heads on two key heads, D = 3, Dv = 4."""
    random = np.random.default_rng(11)
    q, k, v = (random.normal(size=s) for s in ((2, 4, M, 3), (2, 2, N, 3), (2, 2, N, 4)))
    mask = None
    if masked:
        mask = random.random(size=(2, 4, M, N)) < 0.8
        mask[0, :, 2], mask[1, :, :, 1] = False, False
        q[0, :, 2], k[1, :, 1], v[1, :, 1] = np.nan, np.inf, np.nan  # poison
    if bias in ("none", "dense", "row", "-inf"):
        array = {"none": None, "dense": random.normal(size=(2, 4, M, N)), "row": random.normal(size=(4, 1, N))}
        if bias == "-inf":
            chosen = random.normal(size=(M, N))
            chosen[1], chosen[3, 1:4] = -np.inf, -np.inf
        else:
            chosen = array[bias]
    else:
        chosen = position_bias(bias, (2,), 4, M, N, np.float64, random)
        if bias != "box":
            chosen = chosen._replace(value_positions=chosen.value_positions.astype(np.float64))
    return Case(q, k, v, chosen, mask)


def leaves(case: Case) -> list[Any]:
    """What is differentiated: query, key, value and the bias or its parameters and positions."""
    bias = case.bias
    extra = [array for _, array in bias.named_arrays()] if isinstance(bias, PositionBias) else [bias]
    return [*case[:3], *[array for array in extra if array is not None]]


def gradients(function: Any, library: Any, case: Case, cotangent: Any) -> list[Any]:
    if library is TORCH:
        arrays = tree_map(lambda a: a.requires_grad_(a.is_floating_point()), given(library, case))
        output = function(*arrays[:3], **arrays.keywords)
        (output * library.give(cotangent)).sum().backward()
        return [library.take(leaf.grad) for leaf in leaves(arrays)]
    import jax

    def loss(arrays: list[Any], bias: Any) -> Any:
        output = function(*arrays, bias=bias, mask=mask, scale=case.scale)
        return (output * library.give(cotangent)).sum()

    given_case = given(library, case)
    mask = given_case.mask
    first, of_bias = jax.jit(jax.grad(loss, argnums=(0, 1)))(list(given_case[:3]), given_case.bias)
    return [np.asarray(leaf) for leaf in (*first, *jax.tree.leaves(of_bias))]


def bounds(case: Case, cotangent: Any) -> list[Any]:
    """The bound of the module's docstring for every leaf."""
    clean = case._replace(**{n: np.nan_to_num(getattr(case, n), posinf=0.0) for n in ("query", "key", "value")})
    truth = truth_of(clean, U)
    q, k, v = (np.abs(array) for array in clean[:3])
    (M, D), (N, Dv), group = q.shape[-2:], v.shape[-2:], q.shape[-3] // k.shape[-3]
    k, v, do = np.repeat(k, group, 1), np.repeat(v, group, 1), np.abs(cotangent)
    a, o = truth.weights, np.abs(truth.output)
    g = a * (do @ np.swapaxes(v, -1, -2) + np.sum(do * o, axis=-1, keepdims=True))  # (..., H, M, N)
    rel = U * (4 * (M + N + D + Dv) + 64) + 4 * np.max(np.expm1(truth.score_error))
    scale = 1 / np.sqrt(D)

    def grouped(array: Any) -> Any:
        return array.reshape(len(array), -1, group, *array.shape[-2:]).sum(axis=2)

    found = [scale * g @ k, grouped(scale * np.swapaxes(g, -1, -2) @ q), grouped(np.swapaxes(a, -1, -2) @ do)]
    rel = rel + U * g.size
    if isinstance(case.bias, PositionBias):
        found += _through_the_bias(case.bias, g)
    elif case.bias is not None:
        found.append(_sum_to(g, case.bias.shape))
    return [2 * rel * array + 1e-300 for array in found]


def _sum_to(array: Any, shape: tuple[int, ...]) -> Any:
    array = array.sum(axis=tuple(range(array.ndim - len(shape))))
    return array.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1 != array.shape[i]), keepdims=True)


def _through_the_bias(bias: PositionBias, g: Any) -> list[Any]:
    import torch

    arrays = [TORCH.give(array) for _, array in bias.named_arrays()]

    def dense(*arrays: Any) -> Any:
        left = iter(arrays)
        return tree_map(lambda _: next(left), bias).dense()

    weight = g.astype(np.float64)
    jacobian = torch.autograd.functional.jacobian(dense, tuple(arrays), vectorize=True)
    return [np.einsum("bhmn,bhmn...->...", weight, np.abs(leaf.numpy())) for leaf in jacobian]


@pytest.mark.parametrize(("library", "path", "bias", "masked"), GRADIENTS)
def test_gradients_equal_those_of_the_reference(
    library: str, path: str, bias: str, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_with(bias, masked=masked)
    cotangent = np.random.default_rng(12).normal(size=(2, 4, 5, 4))
    # JAX takes 1 for the derivative of |t| at 0; the closed form of the specification, PyTorch and the kernel take 0.
    of = "torch" if (path, bias) == ("jax-native", "linear") else library
    wanted = gradients(ia_core.indirect_attention, LIBRARIES[of], case, cotangent)
    from ia_core.backends import _registry

    monkeypatch.setattr(_registry.load(path), "TILE_ROWS", 2, raising=False)
    with use_backend(path):
        got = gradients(indirect_attention, LIBRARIES[library], case, cotangent)
    for one, other, bound in zip(got, wanted, bounds(case, cotangent), strict=True):
        assert one.shape == other.shape == bound.shape
        assert np.all(np.abs(one - other) <= bound), np.max(np.abs(one - other) / bound)
    if masked:  # what nobody attends to, and what a row with nothing to attend to asks, has the gradient 0
        assert not got[0][0, :, 2].any() and not got[1][1, :, 1].any() and not got[2][1, :, 1].any()


@pytest.mark.parametrize("width", [3, 4])
def test_gradients_where_one_call_does_all_queries(width: int) -> None:
    case = case_with("none", masked=False, N=70)
    case = case._replace(value=case.value[..., :width])
    cotangent = np.random.default_rng(12).normal(size=(2, 4, 5, width))
    assert explain(*given(TORCH, case)[:3]).path == "torch-sdpa"
    got = gradients(indirect_attention, TORCH, case, cotangent)
    wanted = gradients(ia_core.indirect_attention, TORCH, case, cotangent)
    for one, other, bound in zip(got, wanted, bounds(case, cotangent), strict=True):
        assert np.all(np.abs(one - other) <= bound)


def test_half_precision_gradients_are_rounded_once() -> None:
    import torch

    case = case_with("none", masked=False)
    grads = {}
    for dtype in (torch.bfloat16, torch.float32):
        arrays = [torch.from_numpy(a).bfloat16().to(dtype).requires_grad_() for a in case[:3]]
        indirect_attention(*arrays).sum().backward()
        grads[dtype] = [array.grad.double() for array in arrays]
    for half, single in zip(*grads.values(), strict=True):
        # The sum's cotangent is 1 in both: what differs is the last rounding, half an ulp of 2^-8.
        assert torch.all((half - single).abs() <= 2**-8 * single.abs() * 1.001 + 1e-6)


def torch_arrays() -> list[Any]:
    case = case_with("none", masked=False)
    return [TORCH.give(array) for array in (case.query, *(np.repeat(a, 2, 1) for a in case[1:3]))]


def test_the_fused_kernel_refuses_a_second_derivative() -> None:
    import torch

    arrays = [array.requires_grad_() for array in torch_arrays()]

    def second(function: Any) -> Any:
        (first,) = torch.autograd.grad((function(*arrays) ** 2).sum(), arrays[:1], create_graph=True)
        return torch.autograd.grad((first**2).sum(), arrays[:1])[0]

    with pytest.raises(RuntimeError, match=r"derivative for .*backward is not implemented"):
        second(indirect_attention)
    with use_backend("torch-tiled"):
        got = second(indirect_attention)
    assert torch.equal(got, second(ia_core.indirect_attention))  # a single tile: the same operations


@pytest.mark.parametrize("transform", ["vmap", "grad", "vmap of grad", "grad of grad", "jvp", "hessian"])
def test_transforms_of_torch(transform: str) -> None:
    import torch

    q, k, v = torch_arrays()
    asked = []

    def apply(function: Any) -> Any:
        def loss(q: Any) -> Any:
            if function is indirect_attention:
                asked.append(explain(q, k[0], v[0]).path)
            return (function(q, k[0], v[0]) ** 2).sum()

        return {
            "vmap": lambda: torch.func.vmap(function)(q, k, v),
            "grad": lambda: torch.func.grad(loss)(q[0]),
            "vmap of grad": lambda: torch.func.vmap(torch.func.grad(loss))(q),
            "grad of grad": lambda: torch.func.grad(lambda q: torch.func.grad(loss)(q).sum())(q[0]),
            "jvp": lambda: torch.func.jvp(loss, (q[0],), (q[0],))[1],
            "hessian": lambda: torch.func.hessian(loss)(q[0]),
        }[transform]()

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="There is a performance drop")
        got = apply(indirect_attention)
    assert set(asked) <= {"torch-tiled"}
    assert torch.equal(got, apply(ia_core.indirect_attention))  # a single tile: the same operations


def test_forward_mode_of_torch() -> None:
    import torch
    from torch.autograd import forward_ad

    q, k, v = torch_arrays()
    bias = torch.zeros(5, 6, dtype=q.dtype)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(bias, torch.ones_like(bias))
        said = explain(q, k, v, bias=dual)
        assert said.path == "torch-tiled"
        why = "`bias` carries a tangent; the kernel has no forward derivative"
        dense = {"torch-lines": "it is for position biases"}
        assert said.declined == {"torch-native": why, "torch-sdpa": why} | dense
        moved = forward_ad.unpack_dual(indirect_attention(q, k, v, bias=dual)).tangent
    # A constant added to a row of scores changes nothing.
    assert torch.all(moved.abs() <= U * 64 * v.abs().max())


def test_autocast_does_not_lower_the_precision() -> None:
    import torch

    arrays = [array.float() for array in torch_arrays()]
    for path in ("torch-sdpa", "torch-tiled"):
        with use_backend(path):
            wanted = indirect_attention(*arrays)
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(indirect_attention(*arrays), wanted)


@pytest.mark.parametrize("transform", ["jit of vmap", "second derivative"])
def test_transforms_of_jax(transform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import jax

    from ia_core.backends import _jax

    monkeypatch.setattr(_jax, "TILE_ROWS", 2)
    case = case_with("none", masked=False, M=3)
    q, k, v = (JAX.give(array) for array in case[:3])

    def apply(function: Any) -> Any:
        if transform == "jit of vmap":
            return jax.jit(jax.vmap(function))(q, k, v)
        first = jax.grad(lambda q: function(q, k, v).sum())
        return jax.jvp(first, (q,), (jax.numpy.ones_like(q),))[1]

    got, wanted = np.asarray(apply(indirect_attention)), np.asarray(apply(ia_core.indirect_attention))
    truth = truth_of(case, U)
    k_abs, v_abs = (np.repeat(np.abs(array), 2, 1) for array in case[1:3])
    rel = U * (4 * (3 + 6 + 3 + 4) + 64) + 4 * np.max(np.expm1(truth.score_error))
    bound = 2 * rel * (truth.weights @ v_abs)
    if transform == "second derivative":
        # A third moment of the weights, 8 terms a (scale |k|) (scale |k|) |v| summed over D and over Dv; |k| is
        # taken at its largest.
        reach = np.max(np.sum(k_abs, axis=-1)) / np.sqrt(3)
        bound = 8 * reach**2 * np.sum(bound, axis=-1, keepdims=True)
    assert np.all(np.abs(got - wanted) <= bound)


def test_the_bound_of_the_gradients_refuses_a_scale_slightly_off() -> None:
    case = case_with("dense", masked=True)
    cotangent = np.random.default_rng(12).normal(size=(2, 4, 5, 4))
    wanted = gradients(ia_core.indirect_attention, TORCH, case, cotangent)
    off = case._replace(scale=3**-0.5 * (1 + 1e-9))
    got = gradients(ia_core.indirect_attention, TORCH, off, cotangent)
    for one, other, bound in zip(got, wanted, bounds(case, cotangent), strict=True):
        assert np.any(np.abs(one - other) > bound)
