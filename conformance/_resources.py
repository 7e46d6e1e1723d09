"""Family R: resources - the memory that a call needs beyond its inputs and its result."""

from __future__ import annotations

import ctypes
import gc
import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ia_core import LinearOffset, PositionBias

from ._calls import QKV, gradients
from ._case import Case
from ._clause import check_elements, clause, truth_of
from ._implementation import Failure, Implementation
from ._libraries import NotSupported, numpy_dtype, peak_on_device

__all__: list[str] = []

# What tiles, buffers of threads and a slab of rows may grow by; one score matrix in float32 grows by 108 MiB.
CONSTANT = 32 * 2**20
D = 16


@clause(
    "IA-R-01",
    "the memory of a call grows linearly with M = N",
    needs={"linear_memory"},
    fixed=True,
)
def forward_memory(implementation: Implementation, _: Case) -> None:
    biases = ["none", *(["linear"] if "position_bias" in implementation.claims else [])]
    for bias in biases:
        some, twice = (long_case(implementation, factor, bias) for factor in (1, 2))
        grows_linearly(implementation, "a call", some, twice, lambda case: lambda: implementation.run(case).output)
        first = some.but(query=some.query[..., :2, :], bias=_first_rows(some.bias, 2))
        truth, bound = truth_of(first)
        got = implementation.run(some).output[..., :2, :]
        check_elements("output", got, truth.output, bound.output, first)


@clause(
    "IA-R-02",
    "the memory of gradients grows linearly with M = N",
    needs={"linear_memory", "grad"},
    fixed=True,
)
def backward_memory(implementation: Implementation, _: Case) -> None:
    some, twice = (long_case(implementation, factor, "none") for factor in (1, 2))

    def call(case: Case) -> Callable[[], Any]:
        do = np.ones(case.output_shape, case.query.dtype)
        return lambda: gradients(implementation, case, do, wrt=QKV)

    grows_linearly(implementation, "gradients", some, twice, call)


def long_case(implementation: Implementation, factor: int, bias: str) -> Case:
    """One head in the first dtype; with the factor 2 its score matrix has at least 72 MiB, also in a half."""
    dtype = implementation.dtypes[0]
    n = factor * 3072
    rng = np.random.default_rng([18, n])
    query, key, value = (rng.standard_normal((1, 1, n, D)).astype(numpy_dtype(dtype)) for _ in range(3))
    position_bias = None
    if bias == "linear":
        slopes = np.array([0.01], "float64" if dtype == "float64" else "float32")
        position_bias = PositionBias(LinearOffset(slopes), np.arange(n), np.arange(n))
    arithmetic = implementation.arithmetic.get(dtype, "standard")
    return Case(query, key, value, bias=position_bias, seed=n, arithmetic=arithmetic)


def grows_linearly(
    implementation: Implementation, what: str, some: Case, twice: Case, call: Callable[[Case], Callable[[], Any]]
) -> None:
    """From n to 2 n, what is needed beyond the inputs grows by no more than twice inputs and outputs, and CONSTANT."""
    needed = [peak_of(implementation, call(case), warm=case is some) for case in (some, twice)]
    # Queries, keys, values and the output, and for gradients as much again; widened halves are twice as large.
    work = 8 if some.dtype == "float64" else 4
    allowed = 2 * 8 * (twice.query.shape[-2] - some.query.shape[-2]) * D * work + CONSTANT
    grown = needed[1] - needed[0]
    if grown > allowed:
        n = some.query.shape[-2]
        raise Failure(
            f"{what} at M = N = {2 * n} needed {needed[1] / 2**20:.0f} MiB, {grown / 2**20:.0f} MiB more than at {n}; "
            f"wanted at most {allowed / 2**20:.0f} MiB more (one score matrix grows by {3 * n * n * work / 2**20:.0f})",
            twice,
        )


def peak_of(implementation: Implementation, call: Callable[[], Any], *, warm: bool) -> int:
    """Bytes that a call needs at its peak beyond what is held before it.

    ``warm`` calls once before. On a device its library says what was needed. On the CPU the kernel's record of the
    resident set sees every allocation (Linux); elsewhere Python's own tracing sees those of NumPy.

    Raises
    ------
    NotSupported
        Where there is nothing of all that.
    """
    with np.errstate(all="ignore"):
        if warm or implementation.few_shapes:
            call()  # what is loaded, compiled and kept for good
        gc.collect()
        on_device = peak_on_device(implementation.library, implementation.device, call)
        if on_device is not None:
            return on_device
        with _plain_allocator():
            if _reset_peak():
                before = _resident("VmRSS")
                call()
                return _resident("VmHWM") - before
        if implementation.library != "numpy":
            raise NotSupported("this system does not say what a process needed at its peak")
        return _traced(call)


def _first_rows(bias: PositionBias | None, count: int) -> PositionBias | None:
    return None if bias is None else bias._replace(query_positions=bias.query_positions[:count])


def _reset_peak() -> bool:
    """Begin the kernel's record of the largest resident set anew; whether there is one."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _resident("VmHWM") > 0
    except OSError:
        return False


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


@contextmanager
def _plain_allocator() -> Iterator[None]:
    """Every array straight from the system and back to it when it is freed (glibc; elsewhere nothing is changed).

    By itself glibc keeps freed blocks of up to 32 MiB on its heap, and where the next ones do not fit between them
    the resident set of a loop over tiles grows to five times what is in use (measured at M = N = 6144).
    """
    glibc = os.name == "posix" and hasattr(ctypes.CDLL(None), "mallopt") and hasattr(ctypes.CDLL(None), "malloc_trim")
    if not glibc:
        yield
        return
    M_MMAP_THRESHOLD = -3
    ctypes.CDLL(None).malloc_trim(0)
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)


def _traced(call: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
