"""One compilation of the reference serves calls of other sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ia_core import OffsetMLP, PositionBias, indirect_attention

torch = pytest.importorskip("torch")

SIZES = [(5, 6), (4, 70), (9, 3), (1, 17), (6, 6)]


def call(M: int, N: int, kind: str) -> tuple[list[Any], dict[str, Any]]:
    rng = np.random.default_rng([M, N])

    def normal(*shape: int) -> Any:
        return torch.asarray(rng.standard_normal(shape))

    arrays = [normal(2, 4, M, 5), normal(2, 2, N, 5), normal(2, 2, N, 3)]
    if kind == "dense":
        return arrays, {"bias": normal(4, M, N)}
    if kind == "masked":
        return arrays, {"bias": normal(4, 1, N), "mask": torch.asarray(rng.random((M, N)) < 0.7)}
    f = OffsetMLP(normal(7), normal(7), normal(7, 4), normal(4))
    positions = normal(2, M) if kind == "batched" else normal(M)
    return arrays, {"bias": PositionBias(f, positions, torch.arange(N))}


def check(compiled: Any, M: int, N: int, kind: str) -> None:
    arrays, keywords = call(M, N, kind)
    wanted = indirect_attention(*arrays, **keywords)
    torch.testing.assert_close(compiled(*arrays, **keywords), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["dense", "masked", "position", "batched"])
def test_sizes_may_change_under_torch_compile(kind: str) -> None:
    compiled = torch.compile(indirect_attention, fullgraph=True, backend="eager")
    for M, N in SIZES:
        check(compiled, M, N, kind)


def test_kind_of_bias_may_change_under_torch_compile() -> None:
    compiled = torch.compile(indirect_attention, fullgraph=True, backend="eager")
    check(compiled, 5, 6, "dense")
    check(compiled, 4, 70, "dense")
    check(compiled, 4, 70, "batched")
