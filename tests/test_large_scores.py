"""Scores far beyond what exponentials hold: compilers may round them differently on their way to the maximum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ia_core
from ia_core import backends

jax = pytest.importorskip("jax")


@pytest.mark.parametrize("rows", [100, 300])
@pytest.mark.parametrize("size", [3e4, 1e5])
@pytest.mark.parametrize("compiled", [jax.jit(ia_core.indirect_attention), backends.indirect_attention])
def test_compiled_softmax_of_large_scores(compiled: Any, size: float, rows: int) -> None:
    rng = np.random.default_rng(0)
    shapes = ((2, rows, 8), (2, 70, 8), (2, 70, 8))
    query, key, value = ((size * rng.standard_normal(s)).astype(np.float32) for s in shapes)
    output = np.asarray(compiled(*(jax.numpy.asarray(a) for a in (query, key, value))))
    # Scores of 1e9 are known to 100 or so: which value wins is not, but each output lies among the values.
    assert np.all(output >= value.min(axis=-2, keepdims=True) * (1 + 1e-5) - size * 1e-5)
    assert np.all(output <= value.max(axis=-2, keepdims=True) * (1 + 1e-5) + size * 1e-5)


LOWEST = float(np.finfo(np.float32).min)


def gradients(function: Any, library: str, arrays: list[Any], bias: Any, *, wide: bool) -> list[np.ndarray]:
    """Of query, key and value."""
    kind = "float64" if wide else "float32"
    if library == "torch":
        import torch

        given = [torch.as_tensor(array).to(getattr(torch, kind)).requires_grad_() for array in arrays]
        output = function(*given, bias=bias(torch.as_tensor, getattr(torch, kind)))
        found = torch.autograd.grad((output * given[0].detach()).sum(), given)
        return [one.double().numpy() for one in found]
    with jax.enable_x64(wide):
        given = [jax.numpy.asarray(array, kind) for array in arrays]
        matrix = bias(jax.numpy.asarray, kind)
        found = jax.grad(lambda q, k, v: (function(q, k, v, bias=matrix) * given[0]).sum(), (0, 1, 2))(*given)
        return [np.asarray(one, np.float64) for one in found]


@pytest.mark.parametrize("case", ["matrix", "table", "one large value", "steep line"])
@pytest.mark.parametrize(
    ("library", "path"),
    [("torch", None), ("torch", "torch-tiled"), ("torch", "uncompiled"), ("jax", None), ("jax", "jax-pallas")],
)
def test_gradients_beside_biases_of_any_size(
    library: str, path: str | None, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row whose biases are all the lowest number has equal weights, and one with a large one has one weight."""
    pytest.importorskip(library)
    if path == "uncompiled":
        monkeypatch.setenv("IA_CORE_NATIVE", "0")
        path = None
    random = np.random.default_rng(3)
    arrays = [random.standard_normal((1, 2, rows, 8)).astype(np.float32) for rows in (40, 40, 40)]
    matrix = random.standard_normal((2, 40, 40)).astype(np.float32)
    matrix[:, 5:20] = LOWEST
    table = np.zeros((2, 81), np.float32)
    table[:, 60 if case == "one large value" else slice(None, 41)] = 1e8 if case == "one large value" else -2e38

    def bias(give: Any, kind: Any) -> Any:
        if case == "matrix":
            return give(matrix, dtype=kind)
        if case == "steep line":
            places = give(np.arange(40, dtype=np.float32) * 0.93, dtype=kind)
            f: Any = ia_core.LinearOffset(give(np.full(2, -1e7, np.float32), dtype=kind))
        else:
            places, f = give(np.arange(40)), ia_core.OffsetTable(give(table, dtype=kind))
        return ia_core.PositionBias(f, places, places)

    true = gradients(ia_core.indirect_attention, library, arrays, bias, wide=True)
    if path is None:
        found = gradients(backends.indirect_attention, library, arrays, bias, wide=False)
    else:
        with backends.use_backend(path):
            found = gradients(backends.indirect_attention, library, arrays, bias, wide=False)
    for got, want in zip(found, true, strict=True):
        assert np.max(np.abs(got - want)) <= 1e-5 * max(1.0, np.max(np.abs(want)))


def test_the_kernel_of_pytorch_has_weights_of_1_beside_such_a_matrix() -> None:
    """Why gradients beside a matrix are not left to it."""
    torch = pytest.importorskip("torch")
    if not torch.__version__.startswith("2.13."):
        pytest.skip("seen in PyTorch 2.13")
    ones = [torch.ones(1, 1, 16, 8, requires_grad=True) for _ in range(3)]
    lowest = torch.full((16, 16), LOWEST)
    output = torch.nn.functional.scaled_dot_product_attention(*ones, attn_mask=lowest)
    (d_value,) = torch.autograd.grad(output.sum(), ones[2:])
    assert torch.allclose(output, torch.ones(()))  # equal weights, 1/16
    assert torch.equal(d_value, torch.full_like(d_value, 16.0))  # sums over 16 queries of weights that are 1
