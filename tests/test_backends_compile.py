"""torch.compile takes the paths of PyTorch into one graph, with gradients, and sees which path was asked for."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest

import ia_core
from ia_core.backends import explain, indirect_attention, use_backend

from .test_backends_bounds import NATIVE, given
from .test_backends_gradients import TORCH, bounds, case_with, gradients, torch_arrays


class Graphs:
    """A compiler that runs the graph as it is, and remembers what it was."""

    def __init__(self) -> None:
        self.code: list[str] = []

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.code.append(graph.code)
        return graph.forward


@contextlib.contextmanager
def compiling() -> Any:
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()


@pytest.mark.parametrize(("bias", "masked"), [("none", False), ("none", True), ("dense", False), ("mlp", True)])
def test_torch_compile_takes_the_fused_path_without_a_graph_break(bias: str, masked: bool) -> None:
    import torch

    case = given(TORCH, case_with(bias, masked=masked))
    graphs = Graphs()
    with compiling():
        compiled = torch.compile(indirect_attention, fullgraph=True, backend=graphs)
        got = compiled(*case[:3], **case.keywords)
    kernel = "native_forward" if bias == "mlp" and NATIVE is None else "scaled_dot_product_attention"
    assert len(graphs.code) == 1 and kernel in graphs.code[0]
    assert torch.equal(got, indirect_attention(*case[:3], **case.keywords))


@pytest.mark.parametrize(("bias", "sizes"), [("dense", [(5, 6), (4, 70)]), ("linear", [(5, 6)])])
def test_torch_compile_differentiates_and_takes_other_sizes(bias: str, sizes: list[tuple[int, int]]) -> None:
    import torch

    with compiling():
        compiled = torch.compile(indirect_attention, fullgraph=True, backend="aot_eager")
        for M, N in sizes:
            case = case_with(bias, masked=True, M=M, N=N)
            cotangent = np.ones((2, 4, M, 4))
            got = gradients(compiled, TORCH, case, cotangent)
            wanted = gradients(ia_core.indirect_attention, TORCH, case, cotangent)
            for one, other, bound in zip(got, wanted, bounds(case, cotangent), strict=True):
                assert np.all(np.abs(one - other) <= bound)


def test_torch_compile_gives_the_lse() -> None:
    import torch

    arrays = torch_arrays()
    with compiling():
        compiled = torch.compile(lambda *a: indirect_attention(*a, return_lse=True), fullgraph=True, backend="eager")
        got = compiled(*arrays)
    wanted = indirect_attention(*arrays, return_lse=True)
    assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))


def test_torch_compile_traces_anew_around_use_backend() -> None:
    import torch

    arrays, graphs = torch_arrays(), Graphs()

    def fused() -> list[bool]:
        compiled(*arrays)
        return ["scaled_dot_product_attention" in code for code in graphs.code]

    with compiling():
        compiled = torch.compile(indirect_attention, fullgraph=True, backend=graphs)
        assert fused() == [True]
        with use_backend("reference"):
            assert fused() == [True, False]
        assert fused() == [True, False]  # the first graph again
        with use_backend("torch-sdpa"):
            assert fused() == [True, False, True]


def test_torch_compile_sees_which_block_is_the_innermost() -> None:
    import torch

    arrays, graphs = torch_arrays(), Graphs()
    with compiling():
        compiled = torch.compile(indirect_attention, fullgraph=True, backend=graphs)
        with use_backend("reference"), use_backend("torch-sdpa"):
            compiled(*arrays)
        with use_backend("torch-sdpa"), use_backend("reference"):
            compiled(*arrays)
    assert ["scaled_dot_product_attention" in code for code in graphs.code] == [True, False]


def test_use_backend_inside_a_compiled_function_breaks_the_graph() -> None:
    import torch

    def inside(*arrays: Any) -> Any:
        with use_backend("reference"):
            return indirect_attention(*arrays)

    arrays = torch_arrays()
    with compiling():
        with pytest.raises(torch._dynamo.exc.Unsupported, match="ContextVar"):
            torch.compile(inside, fullgraph=True, backend="eager")(*arrays)
        torch._dynamo.reset()
        broken = torch.compile(inside, backend="eager")(*arrays)
    assert torch.equal(broken, ia_core.indirect_attention(*arrays))
    assert explain(*arrays).path == "torch-sdpa"  # the block was left


def test_torch_compile_of_the_first_call_of_a_process() -> None:
    # What a trace reads may not change while it is traced, as by the import of a path.
    code = """
import torch
from ia_core.backends import indirect_attention
q = torch.ones(1, 2, 3, 4)
got = torch.compile(indirect_attention, fullgraph=True, backend="eager")(q, q, q)
assert torch.equal(got, indirect_attention(q, q, q))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
