"""The compiled kernel: many blocks, positions of every kind, threads, and machines where it cannot be had."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings

import ia_core
from ia_core import BoxMLP, OffsetMLP, OffsetTable, PiecewiseLinear, PositionBias
from ia_core.backends import _native, _numpy_native, explain, indirect_attention, use_backend

from .test_backends_bounds import LIBRARIES, Case, check, needs_native
from .test_backends_rules import cases, run

torch = pytest.importorskip("torch")
from ia_core.backends import _torch_line_tiles  # noqa: E402

# Both take a position bias in PyTorch, and recompute it for the gradient.
filled = pytest.mark.parametrize("path", [pytest.param("torch-native", marks=needs_native), "torch-lines"])


@pytest.mark.parametrize(
    ("path", "examples"),
    [
        pytest.param("torch-native", 100, marks=needs_native),
        pytest.param("jax-native", 25, marks=needs_native),
        ("torch-lines", 60),
    ],
)
def test_values_are_within_rounding_of_the_truth(path: str, examples: int) -> None:
    import jax

    library = path.partition("-")[0]

    @settings(max_examples=examples, derandomize=True, deadline=None, database=None)
    @given(cases())
    def holds(drawn: tuple[str, Case]) -> None:
        dtype, case = drawn
        assume(not (isinstance(case.bias, PositionBias) and isinstance(case.bias.f, BoxMLP)))
        takes = {"torch-native": object, "jax-native": PositionBias | None, "torch-lines": PositionBias}[path]
        assume(isinstance(case.bias, takes))
        output, lse = run(LIBRARIES[library], path, case)
        check(case, output, lse, dtype)

    with jax.enable_x64(True):
        holds()


def call_of(
    M: int, N: int, *, hidden: int = 8, H: int = 2, Hk: int = 2, B: int = 1, D: int = 16, dtype: Any = torch.float64
) -> tuple[list[Any], list[Any]]:
    """Query, key and value, and the parameters and positions of a bias with knots all over its offsets."""
    random = np.random.default_rng([M, N, hidden])

    def leaf(array: Any) -> Any:
        return torch.as_tensor(array).to(dtype).requires_grad_()

    arrays = [leaf(random.normal(size=(B, h, n, D))) for h, n in ((H, M), (Hk, N), (Hk, N))]
    w1 = random.normal(size=hidden)
    parts = (w1, -w1 * random.uniform(-N, N, size=hidden), random.normal(size=(hidden, H)) / N, np.zeros(H))
    places = [random.uniform(0, N, size=(B, M)), np.arange(float(N))]
    return arrays, [leaf(part) for part in (*parts, *places)]


def both(arrays: list[Any], leaves: list[Any], mask: Any = None, forced: str = "torch-native") -> list[list[Any]]:
    """Output, lse (where the path has it) and all gradients, of the kernel and of the reference."""
    found = []
    for function, path in ((indirect_attention, forced), (ia_core.indirect_attention, "reference")):
        bias = PositionBias(OffsetMLP(*leaves[:4]), *leaves[4:])
        with use_backend(path):
            results = function(*arrays, bias=bias, mask=mask, return_lse=forced != "torch-lines")
        output, *lse = [results] if forced == "torch-lines" else results
        loss = (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).reshape(output.shape)).sum()
        loss = loss + sum(torch.where(torch.isinf(one), 0.0, one * one).sum() for one in lse)
        wanted = [leaf for leaf in (*arrays, *leaves) if leaf.requires_grad]
        found.append([each.detach() for each in (output, *lse, *torch.autograd.grad(loss, wanted))])
    return found


def close(found: list[list[Any]]) -> None:
    """float64 on both sides: sums of up to 1e6 terms, whose roundings add up like a random walk.

    The terms are of order 1 also where they cancel: without the lse, the gradient of b2 is 0.
    """
    for got, want in zip(*found, strict=True):
        assert got.shape == want.shape and got.dtype == want.dtype
        finite = torch.isfinite(want)
        assert torch.equal(got[~finite], want[~finite])
        assert not finite.any() or (got - want)[finite].abs().max() <= 1e-11 * max(1.0, want[finite].abs().max())


@filled
@pytest.mark.parametrize(
    "sizes",
    [
        {"M": 1, "N": 1},
        {"M": 97, "N": 257},  # one beyond a block
        {"M": 600, "N": 530, "hidden": 200},  # more queries than have their runs at a time
        {"M": 100, "N": 300, "H": 4, "B": 3},
        {"M": 100, "N": 300, "H": 4, "Hk": 2, "D": 5},  # grouped heads, widths that fill no vector
        {"M": 40, "N": 60, "hidden": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("masked", [False, True])
def test_many_blocks_equal_the_reference(sizes: dict[str, int], masked: bool, path: str) -> None:
    arrays, leaves = call_of(**sizes)
    mask = None
    if masked:
        mask = torch.rand(sizes["M"], sizes["N"], generator=torch.Generator().manual_seed(1)) < 0.6
        mask[0] = False
    close(both(arrays, leaves, mask, path))


@needs_native
def test_arrays_of_numpy_that_the_kernel_cannot_read_in_place() -> None:
    """Other byte orders, odd addresses, strides of no whole number of elements, or backwards along the last axis."""
    random = np.random.default_rng(4)
    plain = [random.normal(size=(2, L, 6)).astype(np.float32) for L in (5, 7, 7)]
    bias, mask = random.normal(size=(5, 7)).astype(np.float32), random.random((5, 7)) < 0.7

    def odd(array: Any) -> Any:
        return np.frombuffer(b"0" + array.tobytes(), array.dtype, offset=1).reshape(array.shape)

    def packed(array: Any) -> Any:
        records = np.zeros(array.shape, [("before", "u1"), ("it", array.dtype)])
        records["it"] = array
        return records["it"]

    def backwards(array: Any) -> Any:
        return array[..., ::-1].copy()[..., ::-1]

    with use_backend("numpy-native"):
        want = indirect_attention(*plain, bias=bias, mask=mask)
        for change in (lambda array: array.astype(array.dtype.newbyteorder()), odd, packed, backwards):
            assert _numpy_native._rows(change(plain[0]), np.dtype("float32")).flags.aligned
            got = indirect_attention(*map(change, plain), bias=change(bias), mask=change(mask))
            np.testing.assert_array_equal(got, want)


@needs_native
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_fork_of_a_process_that_has_threads_in_the_kernel(library: str, tmp_path: Path) -> None:
    """OpenMP's threads stay in the parent: the child must do without them, and not wait for them."""
    code = f"""
import os, numpy, {library}
from ia_core import LinearOffset, PositionBias
from ia_core.backends import explain, indirect_attention
give = numpy.asarray if "{library}" == "numpy" else {library}.as_tensor
q, at = give(numpy.random.default_rng(0).normal(size=(4, 300, 8))), give(numpy.arange(300))
bias = PositionBias(LinearOffset(give(numpy.ones(4))), at, at)
assert explain(q, q, q, bias=bias).path == "{library}-native"
before = indirect_attention(q, q, q, bias=bias)
child = os.fork()
if child == 0:
    os._exit(0 if bool((indirect_attention(q, q, q, bias=bias) == before).all()) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    words, env = [sys.executable, "-c", code], os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout == "0\n", done.stderr


@filled
def test_value_positions_in_any_order(path: str) -> None:
    arrays, leaves = call_of(50, 300)
    shuffled = torch.randperm(300, generator=torch.Generator().manual_seed(2)).double().requires_grad_()
    close(both(arrays, [*leaves[:5], shuffled], None, path))


@filled
@pytest.mark.parametrize("far", [2**40, 2**60])
def test_whole_positions_far_from_the_origin(path: str, far: int) -> None:
    """Beyond 2^24 float32 cannot count, beyond 2^53 no float; offsets can be counted all the same."""
    arrays, leaves = call_of(20, 300, dtype=torch.float32)
    f = OffsetMLP(*leaves[:4])
    near = PositionBias(f, torch.arange(20), torch.arange(300))
    moved = PositionBias(f, torch.arange(20) + far, torch.arange(300) + far)
    with use_backend(path):
        assert torch.equal(indirect_attention(*arrays, bias=near), indirect_attention(*arrays, bias=moved))


@needs_native
def test_times_in_nanoseconds_are_whole_positions_of_numpy() -> None:
    arrays, leaves = call_of(20, 300)
    query, key, value, *parameters = (array.detach().numpy() for array in (*arrays, *leaves[:4]))
    start = 1_700_000_000 * 10**9 + np.asarray([[0], [1]])  # with a leading axis that the query does not have elsewhere
    near, moved = (
        PositionBias(OffsetMLP(*parameters), np.arange(20) + at, np.arange(300) + at) for at in (0 * start, start)
    )
    given = [np.concatenate([array, array]) for array in (query, key, value)]
    assert explain(*given, bias=moved).path == "numpy-native"
    np.testing.assert_array_equal(indirect_attention(*given, bias=near), indirect_attention(*given, bias=moved))


@filled
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_positions_behind_the_mask_may_hold_anything(poison: float, path: str) -> None:
    arrays, leaves = call_of(40, 60)
    mask = torch.ones(40, 60, dtype=torch.bool)
    mask[:, 50:], mask[7] = False, False
    poisoned = [leaf.detach().clone() for leaf in leaves[4:]]
    poisoned[0][:, 7], poisoned[1][50:] = poison, poison
    found = both(arrays, [*leaves[:4], *(place.requires_grad_() for place in poisoned)], mask, path)
    clean = both(arrays, leaves, mask, path)
    close([found[0], clean[0]])


@filled
def test_a_table_is_constant_out_to_infinity(path: str) -> None:
    arrays, _ = call_of(3, 5)
    table = OffsetTable(torch.tensor([[1.0, 0.0, 2.0], [0.5, 1.0, 0.0]], dtype=torch.float64))
    bias = PositionBias(table, torch.arange(3.0).double(), torch.tensor([0, 1, 2, np.inf, -np.inf]).double())
    with use_backend(path):
        got = indirect_attention(*arrays, bias=bias)
    assert (got - ia_core.indirect_attention(*arrays, bias=bias)).abs().max() <= 1e-14


@filled
def test_the_result_is_the_same_every_time_and_whatever_the_threads(path: str) -> None:
    arrays, leaves = call_of(300, 400, H=3, Hk=3, dtype=torch.float32)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (2, 2, 1, 3):
            torch.set_num_threads(threads)
            found.append(both(arrays, leaves, None, path)[0])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(found[0], found[1], strict=True))
    for other in found[2:]:  # each head's sums are one thread's
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@filled
def test_gradients_where_the_lse_has_no_digits_left_for_the_sum(path: str) -> None:
    """Scores of -1e30 and all equal: the weights are 1 / N, backward as forward."""
    arrays, _ = call_of(3, 40, dtype=torch.float32)
    table = OffsetTable(torch.full((2, 1), -1e30))
    bias = PositionBias(table, torch.arange(3), torch.arange(40))
    with use_backend(path):
        output = indirect_attention(*arrays, bias=bias, scale=0.0)
    (to_value,) = torch.autograd.grad(output.sum(), arrays[2])
    assert (to_value - 3 / 40).abs().max() <= 1e-6


@filled
def test_an_infinite_cotangent_stays_where_it_may_go(path: str) -> None:
    """A row with nothing to attend to is a constant, and so is a score that the mask forbids: neither takes of it."""
    arrays, leaves = call_of(6, 8)
    mask = torch.ones(6, 8, dtype=torch.bool)
    mask[2], mask[4, 3:] = False, False
    bias = PositionBias(OffsetMLP(*leaves[:4]), *leaves[4:])
    cotangent = torch.ones_like(arrays[0])
    cotangent[..., 2, :], cotangent[..., 4, 0] = np.nan, np.inf
    with use_backend(path):
        output = indirect_attention(*arrays, bias=bias, mask=mask)
    got = torch.autograd.grad(output, (*arrays, leaves[4]), cotangent)
    detached = [array.detach() for array in arrays]
    held = PositionBias(OffsetMLP(*(leaf.detach() for leaf in leaves[:4])), leaves[4].detach(), leaves[5].detach())
    want = ia_core.indirect_attention_vjp(*detached, cotangent, bias=held, mask=mask)
    for one, other in zip(got, (*want[:3], want.bias.query_positions), strict=True):
        assert torch.equal(torch.isfinite(one), torch.isfinite(other))
        finite = torch.isfinite(other)
        assert (one - other)[finite].abs().max() <= 1e-13


@filled
def test_a_second_derivative_is_refused_in_words(path: str) -> None:
    arrays, leaves = call_of(4, 5)
    with use_backend(path):
        output = indirect_attention(*arrays, bias=PositionBias(OffsetMLP(*leaves[:4]), *leaves[4:]))
    (once,) = torch.autograd.grad(output.sum(), arrays[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        torch.autograd.grad(once.sum(), arrays[0])


@filled
def test_compiled_lines_are_taken_as_they_are(path: str) -> None:
    arrays, leaves = call_of(20, 30)
    f = OffsetMLP(*leaves[:4])
    outputs = []
    for g in (f, PiecewiseLinear.from_mlp(f)):
        bias = PositionBias(g, *leaves[4:])
        assert explain(*arrays, bias=bias).path == "torch-native"
        outputs.append(indirect_attention(*arrays, bias=bias))
    assert torch.equal(*outputs)


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"IA_CORE_NATIVE": "0"}, "IA_CORE_NATIVE=0 turns the compiled kernel off"),
        ({"PATH": "", "CC": ""}, "there is no C compiler (cc), which its kernel needs"),
        pytest.param({"IA_CORE_CACHE": "/dev/null/here"}, "its kernel did not compile with", marks=needs_native),
    ],
)
def test_without_the_kernel_another_path_serves(environment: dict[str, str], why: str, tmp_path: Path) -> None:
    code = """
import torch
from ia_core import LinearOffset, PositionBias
from ia_core.backends import explain, indirect_attention
q = torch.ones(1, 2, 4)
bias = PositionBias(LinearOffset(torch.ones(1)), torch.arange(2), torch.arange(2))
print(explain(q, q, q, bias=bias))
assert indirect_attention(q, q, q, bias=bias).shape == q.shape
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first, declined = done.stdout.splitlines()
    assert first == "torch-lines" and declined.startswith(f"  torch-native declined: {why}")


@needs_native
def test_the_library_is_compiled_once_and_left_whole(tmp_path: Path) -> None:
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IA_CORE_CACHE", str(tmp_path / "cache"))
        path = _native._compiled(compiler)
        made = path.stat().st_mtime_ns
        assert _native._compiled(compiler) == path and path.stat().st_mtime_ns == made
        assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("places", ["of each element", "of all elements"])
def test_tiles_of_few_rows_and_heads(places: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the path without a compiler does at sizes of which a test would take long."""
    monkeypatch.setattr(_torch_line_tiles, "LEAST_ROWS", 8)
    monkeypatch.setattr(_torch_line_tiles, "SCORES_PER_TILE", 1000)
    monkeypatch.setattr(_torch_line_tiles, "OFFSETS", 200)
    arrays, leaves = call_of(37, 40, H=4, Hk=2, B=3)
    if places == "of all elements":
        leaves[4] = leaves[4][0].detach().requires_grad_()
    mask = torch.rand(3, 1, 37, 40, generator=torch.Generator().manual_seed(1)) < 0.6
    close(both(arrays, leaves, mask, "torch-lines"))


def test_the_path_without_a_compiler_compiles_as_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IA_CORE_NATIVE", "0")
    arrays, leaves = call_of(9, 12, dtype=torch.float32)

    def loss(*leaves: Any) -> Any:
        return (indirect_attention(*arrays, bias=PositionBias(OffsetMLP(*leaves[:4]), *leaves[4:])) ** 2).sum()

    torch._dynamo.reset()
    got = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*leaves), leaves)
    for one, other in zip(got, torch.autograd.grad(loss(*leaves), leaves), strict=True):
        assert torch.equal(one, other)
