"""Closed-form gradients equal autodiff of the reference to a few ulp in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ia_core import (
    BoxMLP,
    EdgeMLP,
    Grid,
    LinearOffset,
    OffsetMLP,
    OffsetTable,
    PositionBias,
    indirect_attention,
    indirect_attention_vjp,
)

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
jax.config.update("jax_enable_x64", True)

B, H, HK, M, N, D, DV = 2, 4, 2, 3, 6, 5, 7
BIASES = ["none", "full", "heads", "keys", "queries", "shared", "scalar", "mlp", "linear", "box", "batched"]
# Both sides are computed in float64, by different orders of the same sums of at most 42 terms. Three stand in a row
# on each side: 252 roundings of either sign, whose sum has a standard deviation below sqrt(252) = 16 roundings. Four of
# those, relative to a gradient's largest element; the largest seen here is 36.
ULPS = 64 * 2.0**-53


def make(bias: str, masked: bool) -> dict[str, Any]:
    rng = np.random.default_rng([BIASES.index(bias), masked])

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape)

    def edge() -> EdgeMLP:
        return EdgeMLP(normal(2, 4), normal(4), normal(4, H), normal(H))

    mlp = OffsetMLP(normal(6), normal(6), normal(6, H), normal(H))
    shapes = {
        "full": (B, H, M, N),
        "heads": (H, 1, 1),
        "keys": (N,),
        "queries": (M, 1),
        "shared": (1, M, N),
        "scalar": (),
    }
    biases: dict[str, Any] = {
        "none": None,
        "mlp": PositionBias(mlp, N * rng.random(M), N * rng.random(N)),
        "batched": PositionBias(mlp, N * rng.random((B, M)), N * rng.random(N)),
        "linear": PositionBias(LinearOffset(normal(H)), N * rng.random(M), N * rng.random(N)),
        "box": PositionBias(BoxMLP(edge(), edge()), normal(M, 4), Grid(normal(3), normal(2))),
    }
    mask = None
    if masked:
        mask = rng.random((B, 1, M, N)) < 0.7
        mask[0, :, 1] = False
        mask[..., 2] = False
    return {
        "query": normal(B, H, M, D),
        "key": normal(B, HK, N, D),
        "value": normal(B, HK, N, DV),
        "bias": np.asarray(normal(*shapes[bias])) if bias in shapes else biases[bias],
        "mask": mask,
        "cotangent": normal(B, H, M, DV),
        "lse_cotangent": normal(B, H, M),
    }


def leaves(tree: Any) -> list[Any]:
    if tree is None:
        return []
    return [leaf for part in tree for leaf in leaves(part)] if isinstance(tree, tuple) else [tree]


def rebuild(tree: Any, new: list[Any]) -> Any:
    if tree is None:
        return None
    if isinstance(tree, tuple):
        parts = [rebuild(part, new) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return new.pop(0)


def few_ulps(found: list[Any], wanted: list[Any]) -> None:
    assert len(found) == len(wanted)
    for got, exact in zip(found, wanted, strict=True):
        got, exact = np.asarray(got), np.asarray(exact)
        assert got.shape == exact.shape
        assert np.max(np.abs(got - exact), initial=0.0) <= ULPS * np.max(np.abs(exact), initial=1.0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bias", BIASES)
def test_torch_autograd_of_the_reference(bias: str, masked: bool) -> None:
    call = make(bias, masked)
    tree = (call["query"], call["key"], call["value"], call["bias"])
    tensors = [torch.asarray(array).requires_grad_() for array in leaves(tree)]
    q, k, v, b = rebuild(tree, list(tensors))
    mask = None if call["mask"] is None else torch.asarray(call["mask"])
    output, lse = indirect_attention(q, k, v, bias=b, mask=mask, return_lse=True)
    dlse = torch.where(torch.isinf(lse.detach()), 0.0, torch.asarray(call["lse_cotangent"]))
    loss = (output * torch.asarray(call["cotangent"])).sum() + (torch.where(torch.isinf(lse), 0.0, lse) * dlse).sum()
    wanted = torch.autograd.grad(loss, tensors)
    call["lse_cotangent"] = dlse.numpy()
    few_ulps(leaves(tuple(indirect_attention_vjp(**call))), list(wanted))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bias", BIASES)
def test_jax_grad_of_the_reference(bias: str, masked: bool) -> None:
    call = make(bias, masked)
    call["lse_cotangent"] = None
    tree = (call["query"], call["key"], call["value"], call["bias"])
    arrays = [jax.numpy.asarray(array) for array in leaves(tree)]
    mask = None if call["mask"] is None else jax.numpy.asarray(call["mask"])

    def loss(*flat: Any) -> Any:
        q, k, v, b = rebuild(tree, list(flat))
        return jax.numpy.sum(indirect_attention(q, k, v, bias=b, mask=mask) * call["cotangent"])

    wanted = jax.jit(jax.grad(loss, argnums=tuple(range(len(arrays)))))(*arrays)
    few_ulps(leaves(tuple(indirect_attention_vjp(**call))), list(wanted))


def test_closed_form_runs_under_jit_and_compile() -> None:
    call = make("mlp", True)
    wanted = leaves(tuple(indirect_attention_vjp(**call)))
    tree = (call["query"], call["key"], call["value"], call["bias"])
    rest = {name: call[name] for name in ("mask", "cotangent", "lse_cotangent")}

    def vjp(flat: list[Any], rest: dict[str, Any]) -> Any:
        q, k, v, b = rebuild(tree, list(flat))
        return leaves(tuple(indirect_attention_vjp(q, k, v, bias=b, **rest)))

    found = jax.jit(vjp)(
        [jax.numpy.asarray(a) for a in leaves(tree)], {n: jax.numpy.asarray(a) for n, a in rest.items()}
    )
    few_ulps(found, wanted)
    compiled = torch.compile(vjp, fullgraph=True, backend="eager")
    found = compiled([torch.asarray(a) for a in leaves(tree)], {n: torch.asarray(a) for n, a in rest.items()})
    few_ulps(found, wanted)


def test_masked_gradients_are_exactly_zero_whatever_is_behind_the_mask() -> None:
    call = make("none", True)
    for name in ("key", "value"):
        call[name][..., 2, :] = np.nan
    call["query"][0, :, 1] = np.inf
    found = indirect_attention_vjp(**call)
    assert np.all(found.key[..., 2, :] == 0.0) and np.all(found.value[..., 2, :] == 0.0)
    assert np.all(found.query[0, :, 1] == 0.0)
    assert all(np.all(np.isfinite(g)) for g in found[:3])


def test_cotangents_of_empty_rows_have_no_influence() -> None:
    call = make("full", True)
    call["bias"][1, 0, 2] = -np.inf
    clean = indirect_attention_vjp(**call)
    for row in ((0, slice(None), 1), (1, 0, 2)):  # emptied by the mask, and by the bias
        call["cotangent"][row] = np.inf
        call["lse_cotangent"][row] = np.nan
    for got, wanted in zip(indirect_attention_vjp(**call), clean, strict=True):
        assert np.array_equal(got, wanted)


@pytest.mark.parametrize("bias", ["mlp", "linear"])
def test_positions_behind_the_mask_have_no_influence(bias: str) -> None:
    call = make(bias, True)
    clean = leaves(tuple(indirect_attention_vjp(**call)))
    call["bias"].value_positions[2] = np.nan
    for got, wanted in zip(leaves(tuple(indirect_attention_vjp(**call))), clean, strict=True):
        assert np.array_equal(got, wanted)


def test_integer_positions_have_no_gradient() -> None:
    call = make("mlp", False)
    call["bias"] = call["bias"]._replace(query_positions=np.arange(M), value_positions=np.arange(N))
    found = indirect_attention_vjp(**call).bias
    assert found.query_positions is None and found.value_positions is None
    assert np.any(found.f.w1 != 0.0)


def test_half_inputs_are_rounded_once() -> None:
    call = make("full", False)
    half = {name: None if a is None else a.astype(np.float16) for name, a in call.items() if name != "mask"}
    wide = {name: None if a is None else a.astype(np.float32) for name, a in half.items()}
    for got, exact in zip(indirect_attention_vjp(**half), indirect_attention_vjp(**wide), strict=True):
        assert got.dtype == np.float16
        assert np.array_equal(got, exact.astype(np.float16))


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"cotangent": np.zeros((B, H, M, DV + 1))}, ValueError, f"`cotangent` must have shape {(B, H, M, DV)}"),
        ({"cotangent": np.zeros((B, H, M, DV), np.float32)}, TypeError, "`cotangent` must be float64; got float32"),
        ({"lse_cotangent": np.zeros((B, H))}, ValueError, f"`lse_cotangent` must have shape {(B, H, M)}"),
    ],
)
def test_cotangents_that_do_not_fit(changes: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=r"\[IA-X-18\]") as caught:
        indirect_attention_vjp(**(make("none", False) | changes))
    assert text in str(caught.value)


def test_a_table_has_no_closed_form() -> None:
    call = make("mlp", False)
    call["bias"] = call["bias"]._replace(f=OffsetTable(np.zeros((H, 3))))
    with pytest.raises(TypeError, match=r"OffsetTable; give bias\.dense"):
        indirect_attention_vjp(**call)
