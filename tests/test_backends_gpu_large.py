"""The Triton kernels where scores are large: a weight is at most 1, whatever their rounding says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ia_core import LinearOffset, OffsetTable, PiecewiseLinear, PositionBias
from ia_core.backends import indirect_attention, use_backend

from .test_backends_gpu_kernels import PATHS, interpreted, interpreter, near, network

torch = pytest.importorskip("torch")
__all__ = ["interpreter"]

DTYPES = ("float32", "float16", "bfloat16")
ROWS, KEYS = 40, 70
LOWEST = -3e38


def table(lower: float, at: int | None = None) -> Any:
    """A table over the offsets from -80 to 80: of one value up to 0 or everywhere, or of one at an offset."""
    values = np.zeros((2, 161))
    if at is None:
        values[:] = lower
    else:
        values[:, at] = lower
    return lambda dtype: OffsetTable(torch.as_tensor(values, dtype=dtype))


FUNCTIONS = {
    "a table of low values": (table(-2e38), 1.0),
    "a table of equal values": (table(-9e7), 0.0),  # numbers of float32 are 8 apart here
    "one large value": (table(1e8, at=90), 1.0),
    "a steep line": (lambda dtype: LinearOffset(torch.full((2,), -1e7, dtype=dtype)), 1.0),
    "a soft window": (lambda dtype: network(dtype, [1.0, -1.0], [-7.3] * 2, [[-1.3e9] * 2] * 2, [0.5] * 2), 1.0),
    "a soft mask": (lambda dtype: network(dtype, [1.0], [-0.3], [[-3e6] * 2], [0.5] * 2), 1.0),
}


def both(path: str, dtype: str, size: float, bias_of: Any, step: float = 0.93) -> list[list[Any]]:
    """Output, lse and the gradients of query, key and value; those of float64 behind them."""
    random = np.random.default_rng(11)
    shapes = ((2, ROWS, 16), (2, KEYS, 16), (2, KEYS, 16))
    arrays = [torch.as_tensor(random.normal(size=shape)).to(getattr(torch, dtype)) for shape in shapes]
    arrays[0] *= size
    weight = torch.as_tensor(random.normal(size=(2, ROWS, 16))).to(arrays[0].dtype)
    found = []
    for own, wide in ((path, False), ("reference", True)):
        given = [(array.double() if wide else array.clone()).requires_grad_() for array in arrays]
        float_ = torch.float64 if wide else torch.float32
        at = [(torch.arange(n) * step).float().to(float_) for n in (ROWS, KEYS)]
        bias = bias_of(float_)
        bias = bias if isinstance(bias, torch.Tensor) else PositionBias(bias, *at)
        with use_backend(own):
            output, lse = indirect_attention(*given, bias=bias, return_lse=True)
        loss = (output.double() * weight.double()).sum()
        found.append([one.detach().double() for one in (output, lse, *torch.autograd.grad(loss, given))])
    return found


def compare(dtype: str, found: list[list[Any]]) -> None:
    # Weights, outputs and what flows back are rounded to halves.
    near(*found, relative={"float32": 0.0, "float16": 2**-8, "bfloat16": 2**-5}[dtype])


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=interpreted) for kind in FUNCTIONS])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", PATHS)
def test_functions_of_any_size_leave_weights_that_are_weights(
    path: str, dtype: str, kind: str, interpreter: None
) -> None:
    f, size = FUNCTIONS[kind]
    compare(dtype, both(path, dtype, size, f, step=1.0 if "table" in kind or "value" in kind else 0.93))


@pytest.mark.parametrize("path", [pytest.param(path, marks=interpreted) for path in PATHS])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_whose_biases_are_all_lowest_has_equal_weights(path: str, dtype: str, interpreter: None) -> None:
    """An additive mask of the lowest finite number, and rows that it hides entirely: an lse of two numbers."""
    lowest = torch.zeros(2, ROWS, KEYS)
    lowest[:, 5:20] = LOWEST
    compare(dtype, both(path, dtype, 1.0, lambda float_: lowest.to(float_)))


@pytest.mark.parametrize("path", [pytest.param(path, marks=interpreted) for path in PATHS])
def test_values_without_width_leave_the_lse(path: str, interpreter: None) -> None:
    """And its gradients."""
    random = np.random.default_rng(2)
    arrays = [torch.as_tensor(random.normal(size=size)).float() for size in ((2, 5, 4), (1, 6, 4), (1, 6, 0))]
    found = []
    for own in (path, "reference"):
        given = [array.clone().requires_grad_() for array in arrays]
        values = torch.linspace(-1, 1, 26).reshape(2, 13).requires_grad_()
        with use_backend(own):
            bias = PositionBias(OffsetTable(values), torch.arange(5), torch.arange(6))
            output, lse = indirect_attention(*given, bias=bias, return_lse=True)
        gradients = torch.autograd.grad(lse.sin().sum() + output.sum(), [*given[:2], values])
        found.append([one.detach().double() for one in (lse, *gradients)])
    near(*found)


@pytest.mark.parametrize("path", [pytest.param("torch-triton", marks=interpreted), "torch-lines"])
@pytest.mark.parametrize("knots", [[3.0, 3.0], [-1.0] + [3.0] * 7, [0.0, 2.0, 2.0, 2.0, 5.0]])
def test_on_coinciding_knots_the_first_of_their_cells_counts(path: str, knots: list[float], interpreter: None) -> None:
    random = np.random.default_rng(4)
    cells = 2 * len(knots) + 1
    found = []
    q = torch.as_tensor(random.normal(size=(1, 2, 12, 4)))
    slopes, intercepts = random.normal(size=(2, cells, 2))
    for own, dtype in ((path, torch.float32), ("reference", torch.float64)):
        f = PiecewiseLinear(*(torch.as_tensor(part, dtype=dtype) for part in (knots, slopes, intercepts)))
        at = torch.arange(12.0, dtype=dtype)
        with use_backend(own):
            found.append([indirect_attention(*[q.to(dtype)] * 3, bias=PositionBias(f, at, at)).double()])
    near(*found)
