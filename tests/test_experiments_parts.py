"""Parts of the experiments against other ways to compute the same."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from experiments._convolution import conv1d, conv2d, group_norm
from experiments.osod._average_precision import average_precision, keep_best
from experiments.osod._model import decode, pixel_centres
from experiments.osod._published import layer_from_state
from experiments.speech._baselines import uniform_onsets, viterbi_onsets
from experiments.synthetic._bound import most_without_the_others
from experiments.synthetic._noise import permutations
from ia_core import LayerNorm, Linear
from ia_core.tasks import sorting_task

torch = pytest.importorskip("torch")
CLOSE = 1e-12  # float64, sums of at most a few hundred products of numbers around 1


@pytest.mark.parametrize(("stride", "dilation", "taps"), [(1, 1, 5), (2, 1, 5), (1, 3, 5), (1, 1, 3)])
def test_conv1d_is_the_convolution(stride: int, dilation: int, taps: int) -> None:
    rng = np.random.default_rng(0)
    x, weight, bias = rng.standard_normal((2, 16, 3)), rng.standard_normal((4, 3, taps)), rng.standard_normal(4)
    params = Linear(weight.transpose(2, 1, 0).reshape(3 * taps, 4), bias)
    given = [torch.as_tensor(part) for part in (x.transpose(0, 2, 1).copy(), weight, bias)]
    pad = dilation * (taps - 1) // 2
    wanted = torch.nn.functional.conv1d(*given, stride=stride, padding=pad, dilation=dilation)
    np.testing.assert_allclose(
        conv1d(params, x, stride=stride, dilation=dilation), wanted.numpy().transpose(0, 2, 1), rtol=0, atol=CLOSE
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_conv2d_is_the_convolution(stride: int) -> None:
    rng = np.random.default_rng(1)
    x, weight, bias = rng.standard_normal((2, 8, 6, 3)), rng.standard_normal((4, 3, 3, 3)), rng.standard_normal(4)
    params = Linear(weight.transpose(2, 3, 1, 0).reshape(27, 4), bias)
    given = [torch.as_tensor(part) for part in (x.transpose(0, 3, 1, 2).copy(), weight, bias)]
    wanted = torch.nn.functional.conv2d(*given, stride=stride, padding=1).numpy()
    np.testing.assert_allclose(conv2d(params, x, stride=stride), wanted.transpose(0, 2, 3, 1), rtol=0, atol=CLOSE)


def test_group_norm_is_the_group_norm() -> None:
    rng = np.random.default_rng(2)
    x, weight, bias = rng.standard_normal((2, 5, 7, 8)), rng.standard_normal(8), rng.standard_normal(8)
    given = [torch.as_tensor(part) for part in (x.transpose(0, 3, 1, 2).copy(), weight, bias)]
    wanted = torch.nn.functional.group_norm(given[0], 4, given[1], given[2]).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(group_norm(LayerNorm(weight, bias), x), wanted, rtol=0, atol=CLOSE)


def test_information_bound_of_cross_attention_on_sorting() -> None:
    """0.36602; and the best guess from many instances is right as often, within five standard errors (1e-6)."""
    bound = most_without_the_others()
    assert bound == pytest.approx(0.36602, abs=5e-6)
    task = sorting_task(3, 40_000)
    rank = np.take_along_axis(np.argsort(task.conditioning, axis=1), task.content, axis=1)
    counts = np.zeros((10, 10, 10))
    np.add.at(counts, (rank, np.broadcast_to(np.arange(10), rank.shape), task.target), 1.0)
    seen = counts.max(axis=-1).sum() / counts.sum()
    # The letters of an instance depend on one another: at worst as if there were one in each.
    assert abs(seen - bound) < 5.0 * 0.5 / math.sqrt(40_000)


def test_permutations_move_what_they_say() -> None:
    rng = np.random.default_rng(4)
    for fraction, moved in ((0.0, 0), (0.2, 2), (0.5, 5), (1.0, 10)):
        perm = permutations(rng, 50, 10, fraction)
        assert (np.sort(perm, axis=1) == np.arange(10)).all()
        assert ((perm != np.arange(10)).sum(axis=1) == moved).all()


def test_viterbi_finds_the_best_of_all_paths() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        phones, T = rng.integers(1, 4, size=3), 7
        scores = rng.standard_normal((1, T, 4))
        found = viterbi_onsets(scores, np.pad(phones, (0, 2))[None], np.asarray([3]))[0, :3]
        best = max((path_score(scores[0], phones, path), path) for path in paths(T))
        assert found.tolist() == [best[1].index(state) for state in (1, 3, 5)]


def paths(T: int) -> list[tuple[int, ...]]:
    """All paths through silence, phone, silence, phone, silence, phone, silence that visit every phone."""
    found = []
    for path in itertools.combinations_with_replacement(range(7), T):
        if {1, 3, 5} <= set(path):
            found.append(path)
    return found


def path_score(scores: np.ndarray, phones: np.ndarray, path: tuple[int, ...]) -> float:
    return sum(scores[t, phones[state // 2] if state % 2 else 0] for t, state in enumerate(path))


def test_uniform_onsets() -> None:
    assert uniform_onsets(np.asarray([4]), np.asarray([10.0]), 4).tolist() == [[0.0, 2.5, 5.0, 7.5]]


def test_average_precision_of_cases_that_can_be_counted() -> None:
    box, other = np.asarray([0.0, 0.0, 0.5, 0.5]), np.asarray([0.5, 0.5, 1.0, 1.0])
    truth = [(0, 1, box), (0, 1, other), (1, 2, box)]
    right = [(0, 1, box, 0.9), (0, 1, other, 0.8), (1, 2, box, 0.7)]
    assert average_precision(truth, right, 48.0) == {"AP50": 100.0, "AP75": 100.0}
    # Of class 1 one of two is found, before a wrong one: recall 1/2 at precision 1, so 51 of 101 points of recall.
    half = [(0, 1, box, 0.9), (0, 1, np.asarray([0.9, 0.0, 1.0, 0.1]), 0.8), (1, 2, box, 0.7)]
    assert average_precision(truth, half, 48.0)["AP50"] == pytest.approx(100.0 * (51 / 101 + 1.0) / 2.0, abs=0.01)
    # IoU 0.6: right at 0.5, wrong at 0.75.
    wide = [(0, 1, box * [1, 1, 0.6, 1], 0.9), right[1], right[2]]
    found = average_precision(truth, wide, 48.0)
    assert found["AP50"] == 100.0
    assert found["AP75"] < 100.0


def test_suppression_keeps_the_better_of_two_that_overlap() -> None:
    boxes = np.asarray([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.9, 1.0], [0.0, 0.0, 0.4, 1.0]])
    assert keep_best(boxes, np.asarray([0.1, 0.9, 0.5])) == [1, 2]


class PublishedLayer(torch.nn.Module):
    """The decoder layer of section 6.2 on torch.nn's modules, pixel by pixel."""

    def __init__(self, d: int, heads: int, hidden: int) -> None:
        super().__init__()
        attention = {"batch_first": True, "dtype": torch.float64}
        self.heads = heads
        self.self_attn = torch.nn.MultiheadAttention(d, heads, **attention)
        self.cross_attn = torch.nn.MultiheadAttention(d, heads, **attention)
        self.norm1, self.norm2, self.norm3 = (torch.nn.LayerNorm(d, dtype=torch.float64) for _ in range(3))
        self.linear1, self.linear2 = linear(d, hidden), linear(hidden, d)
        self.rpb_x, self.rpb_y, self.bbox = Two(2, hidden, heads), Two(2, hidden, heads), Two(d, hidden, 4)
        self.score = linear(d, 1)

    def forward(self, x: Any, pos: Any, keys: Any, values: Any, boxes: Any, side: int) -> Any:
        h = self.norm1(x)
        x = x + self.self_attn(h + pos, h + pos, h, need_weights=False)[0]
        bias = self.box_bias(boxes, side).flatten(0, 1)  # (B H, M, N), one map added to the scores of each head
        x = x + self.cross_attn(self.norm2(x) + pos, keys, values, attn_mask=bias, need_weights=False)[0]
        x = x + self.linear2(torch.nn.functional.gelu(self.linear1(self.norm3(x)), approximate="tanh"))
        refined = torch.sigmoid(torch.special.logit(boxes, eps=1e-5) + self.bbox(x))
        return x, refined, self.score(x)[..., 0]

    def box_bias(self, boxes: Any, side: int) -> Any:
        centre, half = boxes[..., :2], boxes[..., 2:] / 2
        low, high = centre - half, centre + half
        lines = (torch.arange(side, dtype=torch.float64) + 0.5) / side
        maps = []
        for axis, network in ((0, self.rpb_x), (1, self.rpb_y)):
            edges = torch.stack([low[..., axis, None] - lines, high[..., axis, None] - lines], -1)
            maps.append(network(torch.sign(edges) * torch.log1p(8.0 * edges.abs())))  # (B, M, side, H)
        columns, rows = maps
        return (rows[:, :, :, None] + columns[:, :, None, :]).flatten(2, 3).permute(0, 3, 1, 2)


class Two(torch.nn.Module):
    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([linear(inputs, hidden), linear(hidden, outputs)])

    def forward(self, x: Any) -> Any:
        return self.layers[1](torch.relu(self.layers[0](x)))


def linear(inputs: int, outputs: int) -> Any:
    return torch.nn.Linear(inputs, outputs, dtype=torch.float64)


def test_decoder_layer_agrees_with_the_published_equations() -> None:
    torch.manual_seed(6)
    published, rng, side = PublishedLayer(16, 4, 24), np.random.default_rng(6), 5
    layer = layer_from_state({name: part.numpy() for name, part in published.state_dict().items()}, 4)
    x, pos = rng.standard_normal((2, 7, 16)), rng.standard_normal((7, 16))
    keys, values = rng.standard_normal((2, side * side, 16)), rng.standard_normal((2, side * side, 16))
    boxes = rng.uniform(0.1, 0.9, (2, 7, 4))
    with torch.no_grad():
        wanted = published(*map(torch.as_tensor, (x, pos, keys, values, boxes)), side)
    found = decode(layer, x, pos, keys, values, boxes, pixel_centres(x, side), "indirect")
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=0, atol=CLOSE)
