"""PyTorch without a compiler: whole positions that go on by one step have a bias that is a view."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ia_core
from ia_core import LinearOffset, OffsetMLP, PiecewiseLinear, PositionBias
from ia_core.backends import _torch_diagonals, _torch_line_tiles, indirect_attention, use_backend

H, D = 4, 8


def call_of(M: int, N: int, Hk: int, B: int, dtype: Any = torch.float64) -> list[Any]:
    """Query, key, value, and a network with knots among the offsets."""
    random = torch.Generator().manual_seed(M + N)
    arrays = [torch.randn(B, h, n, D, generator=random) for h, n in ((H, M), (Hk, N), (Hk, N))]
    w1 = torch.randn(12, generator=random)
    arrays += [w1, -w1 * 40 * torch.randn(12, generator=random), torch.randn(12, H, generator=random), torch.randn(H)]
    return [array.to(dtype).requires_grad_() for array in arrays]


def gradients_of(arrays: list[Any], places: list[Any], mask: Any, path: str) -> list[Any]:
    """The output and all gradients, of a path or of the reference."""
    function = ia_core.indirect_attention if path == "reference" else indirect_attention
    wanted = [array for array in (*arrays, *places) if array.requires_grad]
    with use_backend(path):
        output = function(*arrays[:3], bias=PositionBias(OffsetMLP(*arrays[3:]), *places), mask=mask)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).reshape(output.shape)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), wanted)]


def agree(arrays: list[Any], places: list[Any], mask: Any = None) -> None:
    """float64 on both sides.

    A network's gradient adds up, for a head, terms whose sizes are 2e4 together (2 times 20 to 100 rows of weights 1,
    times up to 200 of the network) and which may cancel. A factor of each has some ten roundings: 20 eps 2e4 is 9e-11.
    """
    found = [gradients_of(arrays, places, mask, path) for path in ("torch-lines", "reference")]
    for got, want in zip(*found, strict=True):
        assert got.shape == want.shape
        assert (got - want).abs().max() <= 9e-11 * max(1.0, want.abs().max())


@pytest.fixture
def never_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("a bias that is a view was filled in")

    monkeypatch.setattr(_torch_line_tiles, "_filled", refuse)
    for name in ("SCORES_PER_TILE", "SCORES_BACKWARD"):  # several tiles, the last ones smaller
        monkeypatch.setattr(_torch_line_tiles, name, 2**13)
    monkeypatch.setattr(_torch_line_tiles, "ROWS_OF_A_VIEW", 48)


STEPS = [
    pytest.param(torch.arange(100), torch.arange(130), id="from 0"),
    pytest.param(torch.arange(40) - 2**40, torch.arange(130) - 2**40 + 7, id="far from 0"),
    pytest.param(3 * torch.arange(70) + 5, 3 * torch.arange(90), id="steps of 3"),
    pytest.param(torch.arange(70, 0, -1), torch.arange(90, 0, -1), id="descending"),
    pytest.param(torch.zeros(20, dtype=torch.int32), torch.full((30,), 4, dtype=torch.int32), id="steps of 0"),
    pytest.param(torch.tensor([3]), torch.arange(0, 60, 2), id="one query"),
    pytest.param(torch.arange(60), torch.tensor([3]), id="one value"),
    pytest.param(torch.arange(400), torch.arange(3), id="few values"),
    pytest.param(torch.tensor([3]), torch.tensor([-2]), id="one of both"),
    pytest.param(torch.arange(50.0).double(), torch.arange(60.0).double(), id="floats that are whole"),
    pytest.param(torch.arange(40).repeat(2, 1), torch.arange(60) + torch.tensor([[0], [9]]), id="each its own"),
]


@pytest.mark.usefixtures("never_filled")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("Hk", [4, 2])
@pytest.mark.parametrize(("queries", "values"), STEPS)
def test_a_view_is_the_same_bias(queries: Any, values: Any, Hk: int, masked: bool) -> None:
    M, N = queries.shape[-1], values.shape[-1]
    arrays = call_of(M, N, Hk, B=2)
    mask = None
    if masked:
        mask = torch.rand(2, H, M, N, generator=torch.Generator().manual_seed(0)) < 0.6
        mask[0, :, M // 2] = False
    agree(arrays, [queries, values], mask)


HALVES, WHOLE = torch.arange(40).double() / 2, torch.arange(60).double()
OTHERS = [
    pytest.param(torch.arange(40), torch.arange(60) * 7 % 60, id="in another order"),
    pytest.param(torch.arange(0, 80, 2), torch.arange(60), id="steps of 2 and of 1"),
    pytest.param(HALVES, WHOLE / 2, id="halves"),
    pytest.param(torch.stack([2 * HALVES, 2 * HALVES + 0.5]), WHOLE, id="one of two whole"),
]


@pytest.mark.parametrize(("queries", "values"), OTHERS)
def test_others_are_filled_in(queries: Any, values: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("no view")

    monkeypatch.setattr(_torch_line_tiles, "_turned", refuse)
    agree(call_of(40, 60, 2, B=2), [queries, values])


@pytest.mark.usefixtures("never_filled")
@pytest.mark.parametrize("moving", [(0,), (1,), (0, 1)])
def test_whole_positions_have_gradients(moving: tuple[int, ...]) -> None:
    places = [torch.arange(200).double(), torch.arange(150).double()]
    for place in moving:
        places[place].requires_grad_()
    agree(call_of(200, 150, 2, B=2), places)


@pytest.mark.parametrize("moves", [False, True])
def test_forward_and_backward_are_one_function_far_from_0(moves: bool) -> None:
    """A jump just above 0: beside positions of 2^40 a float64 holds it, but not their sum."""
    numbers = [[1e-4], [[0.0], [0.0], [0.0]], [[0.0], [5.0], [5.0]]]
    jump = PiecewiseLinear(*(torch.tensor(each, dtype=torch.float64) for each in numbers))
    arrays = [array[:, :1] for array in call_of(30, 30, 4, B=1)[:3]]
    places = [2.0**40 + torch.arange(30).double() for _ in range(2)]
    places[0].requires_grad_(moves)
    found = []
    for function, path in ((indirect_attention, "torch-lines"), (ia_core.indirect_attention, "reference")):
        with use_backend(path):
            output = function(*arrays, bias=PositionBias(jump, *places))
        found.append([output, *torch.autograd.grad(output.sum(), arrays)])
    for got, want in zip(*found, strict=True):
        assert (got - want).abs().max() <= 1e-13


def test_few_values_take_no_more_than_their_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Along diagonals of 1024 rows and 2 values: rows padded by 1024 would be 500 times as many numbers."""
    largest = 0
    own = torch.nn.functional.pad

    def padded(array: Any, by: Any) -> Any:
        nonlocal largest
        found = own(array, by)
        largest = max(largest, found.numel())
        return found

    monkeypatch.setattr(_torch_diagonals, "pad", padded)
    agree(call_of(1024, 2, 4, B=1), [torch.arange(1024), torch.arange(2)])
    assert 0 < largest <= 2 * 1024 * H * 2


def test_no_heads() -> None:
    nothing = torch.zeros(2, 0, 3, 4, requires_grad=True)
    bias = PositionBias(LinearOffset(torch.zeros(0)), torch.arange(3), torch.arange(3))
    with use_backend("torch-lines"):
        output = indirect_attention(nothing, nothing, nothing, bias=bias)
    (gradient,) = torch.autograd.grad(output.sum(), nothing)
    assert output.shape == gradient.shape == (2, 0, 3, 4)


@pytest.mark.parametrize("which", range(3))
def test_the_fused_kernel_takes_every_layout(which: int) -> None:
    """What PyTorch has beside it would hold all scores: here 2048 x 2048 of 4 heads."""
    arrays = [torch.ones(1, H, 2048, D) for _ in range(3)]
    arrays[which] = torch.ones(1, H, D, 2048).mT
    bias = PositionBias(LinearOffset(torch.ones(H)), torch.arange(2048), torch.arange(2048))
    activities = [torch.profiler.ProfilerActivity.CPU]
    with use_backend("torch-lines"), torch.profiler.profile(activities=activities) as profile:
        indirect_attention(*arrays, bias=bias)
    called = {event.key for event in profile.key_averages()}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in called
    assert "aten::_scaled_dot_product_attention_math" not in called


def test_nothing_is_held_of_a_view() -> None:
    """Without a mask: 2048 x 2048 scores of 4 heads would be 64 MiB, and a tile of them 8."""
    places = [torch.arange(2048)[None].double() for _ in range(2)]
    numbers = torch.zeros(1, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), *torch.zeros(2, H, 3)
    lines = _torch_line_tiles.Lines(*numbers)
    tiles = list(_torch_line_tiles.tiles_of(lines, places, None, backward=False))
    assert [tile.bias.shape for tile in tiles] == [(H, 2048, 2048)]
    assert tiles[0].bias.untyped_storage().nbytes() == 4 * 2 * H * 4095  # the bias and its slopes
