"""What a path of PyTorch keeps for its backward pass: inputs and results, never scores."""

from __future__ import annotations

import numpy as np
import pytest

from ia_core import OffsetMLP, PositionBias
from ia_core.backends import use_backend

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("path", ["torch-tiled", "torch-lines"])
@pytest.mark.parametrize("kind", [None, "position"])
def test_no_scores_are_kept(path: str, kind: str | None) -> None:
    from ia_core.backends import indirect_attention

    if path == "torch-lines" and kind is None:
        pytest.skip("it is for position biases")
    n, hidden = 600, 8
    rng = np.random.default_rng(0)
    arrays = [torch.asarray(rng.standard_normal((1, n, 4)), dtype=torch.float64) for _ in range(3)]
    query, key, value = (array.requires_grad_() for array in arrays)
    shapes = [(hidden,), (hidden,), (hidden, 1), (1,)]
    f = OffsetMLP(*(torch.asarray(rng.standard_normal(s), dtype=torch.float64).requires_grad_() for s in shapes))
    places = torch.arange(n, dtype=torch.float64)
    bias = None if kind is None else PositionBias(f, places, places)
    kept: list[int] = []

    def keep(array: torch.Tensor) -> torch.Tensor:
        kept.append(array.numel())
        return array

    with use_backend(path), torch.autograd.graph.saved_tensors_hooks(keep, lambda array: array):
        output = indirect_attention(query, key, value, bias=bias)
    assert kept and max(kept) <= 4 * n
    wanted = torch.autograd.grad(_written_out(query, key, value, f if bias is not None else None, places), query)[0]
    got = torch.autograd.grad(output.square().sum(), query)[0]
    # Scores below 1e4: their rounding is 1e4 units, 1e-12 of a weight, and a gradient sums 600 of them, twice.
    assert float((got - wanted).abs().max()) <= 1e-9 * float(wanted.abs().max())


def _written_out(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, f: OffsetMLP | None, places: torch.Tensor
) -> torch.Tensor:
    scores = query @ key.mT / 2.0
    if f is not None:
        t = (places - places[:, None])[..., None]
        scores = scores + (torch.relu(t * f.w1 + f.b1) @ f.w2 + f.b2).movedim(-1, 0)
    return (torch.softmax(scores, -1) @ value).square().sum()
