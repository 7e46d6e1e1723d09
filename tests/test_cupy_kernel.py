"""The kernel for CuPy, compiled for the processor with one thread a block: its arithmetic needs no GPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ia_core
import ia_core.backends
from ia_core import OffsetMLP, PiecewiseLinear, PositionBias

SOURCE = Path(ia_core.backends.__file__).parent / "native" / "softmax.cu"
SHIM = """
#include <cmath>
#include <cstring>
using std::ceil; using std::exp; using std::log;
#define __device__ static
#define __global__
#define __shared__ static
static struct { long long x; } blockIdx, threadIdx;
static void __syncthreads() {}
static double __longlong_as_double(long long bits) { double d; std::memcpy(&d, &bits, 8); return d; }
#define T %s
#define WIDTH 1
#include "%s"
extern "C" void at_block(long long block) { blockIdx.x = block; threadIdx.x = 0; }
"""
pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


@pytest.fixture(scope="module", params=["float32", "float64"])
def kernel(request: Any, tmp_path_factory: Any) -> Any:
    """The dtype, and the library with the kernel."""
    folder = tmp_path_factory.mktemp("kernel")
    (folder / "kernel.cpp").write_text(SHIM % ({"float32": "float", "float64": "double"}[request.param], SOURCE))
    command = ["c++", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "kernel.cpp", "-o", "kernel.so"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return np.dtype(request.param), ctypes.CDLL(str(folder / "kernel.so"))


def rows(
    kernel: Any, products: Any, scale: float, f: Any = None, p: Any = None, x: Any = None, mask: Any = None
) -> Any:
    dtype, library = kernel
    s = np.array(products, dtype=dtype)
    B, H, M, N = s.shape
    total, lse = np.empty((2, B, H, M), dtype=dtype)
    tables = [np.zeros(1)] * 5 if f is None else [f.knots, f.slopes.T, f.intercepts.T, p, x]
    tables = [np.ascontiguousarray(table, dtype=np.float64) for table in tables]
    K = -1 if f is None else tables[0].shape[0]
    strides = (0,) * 4 if mask is None else mask.strides
    sizes = [ctypes.c_longlong(size) for size in (H, M, N)]
    pointers = [table.ctypes.data_as(ctypes.c_void_p) for table in (s, total, lse, *tables)]
    forbids = None if mask is None else ctypes.c_void_p(mask.__array_interface__["data"][0])
    for block in range(B * H * M):
        library.at_block(ctypes.c_longlong(block))
        library.attend_rows(
            *pointers[:3],
            *sizes,
            ctypes.c_double(scale),
            ctypes.c_longlong(K),
            *pointers[3:],
            forbids,
            *(ctypes.c_longlong(stride) for stride in strides),
        )
    return s / total[..., None], lse


def case(dtype: Any, seed: int) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    q, k = rng.standard_normal((2, 2, 3, 5, 4)).astype(dtype), rng.standard_normal((2, 2, 3, 7, 4)).astype(dtype)
    return q[0], k[0], np.matmul(q[0], np.swapaxes(k[0], -1, -2)), rng


@pytest.mark.parametrize("masked", [False, True])
def test_weights_and_lse_are_those_of_the_specification(kernel: Any, masked: bool) -> None:
    q, k, products, rng = case(kernel[0], 1)
    f = OffsetMLP(*(rng.standard_normal(shape).astype(kernel[0]) for shape in ((6,), (6,), (6, 3), (3,))))
    p = np.stack([np.arange(5), np.arange(5) + 2]).astype(kernel[0])
    x = np.stack([np.arange(7), np.arange(7)[::-1]]).astype(kernel[0])
    mask = rng.random((2, 1, 5, 7)) < 0.6 if masked else None
    if masked:
        mask[0, 0, 2] = False
        mask = np.broadcast_to(mask, (2, 3, 5, 7))
    bias = PositionBias(f, p, x)
    weights, lse = rows(kernel, products, 0.5, PiecewiseLinear.from_mlp(f), p, x, mask)
    wanted = ia_core.attention_weights(q, k, bias=bias, mask=mask, scale=0.5)
    _, wanted_lse = ia_core.indirect_attention(q, k, k, bias=bias, mask=mask, scale=0.5, return_lse=True)
    # Scores here are below 50: 100 units of rounding of them, and so of the logarithm of a weight.
    close = {"rtol": 100 * 50 * np.finfo(kernel[0]).eps, "atol": 1e-30}
    np.testing.assert_allclose(weights, wanted, **close)
    np.testing.assert_allclose(lse, wanted_lse, **close)
    assert not masked or bool(np.all(weights[0, :, 2] == 0.0) and np.all(lse[0, :, 2] == -np.inf))


def test_knots_are_cells_of_their_own_and_flat_lines_reach_infinity(kernel: Any) -> None:
    f = PiecewiseLinear(
        np.asarray([0.0, 1.0]), np.asarray([[0.0], [0], [2], [0], [0]]), np.asarray([[3.0], [5.0], [0.0], [7.0], [9.0]])
    )
    x = np.asarray([[-np.inf, -1.0, 0.0, 0.5, 1.0, 2.0, np.inf]])
    _, lse = rows(kernel, np.zeros((1, 1, 1, 7)), 1.0, f, np.zeros((1, 1)), x)
    values = np.asarray([3.0, 3.0, 5.0, 1.0, 7.0, 9.0, 9.0])
    assert abs(lse[0, 0, 0] - np.log(np.sum(np.exp(values)))) < 1e-5


def test_nan_and_infinite_scores_go_the_way_of_the_specification(kernel: Any) -> None:
    products = np.asarray([[np.nan, 1.0], [-np.inf, -np.inf], [np.inf, 0.0], [0.0, -np.inf]]).reshape(1, 1, 4, 2)
    with np.errstate(invalid="ignore"):
        weights, lse = rows(kernel, products, 1.0)
    assert np.all(np.isnan(weights[0, 0, 0])) and np.isnan(lse[0, 0, 0])
    assert np.all(weights[0, 0, 1] == 0.0) and lse[0, 0, 1] == -np.inf
    assert np.isnan(weights[0, 0, 2]).any()
    assert weights[0, 0, 3].tolist() == [1.0, 0.0] and lse[0, 0, 3] == 0.0
