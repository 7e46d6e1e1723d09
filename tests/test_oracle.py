"""The oracle against values known without it, and against an independent evaluation in rational numbers."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, seed, settings

from ia_core import BoxMLP, EdgeMLP, Grid, LinearOffset, OffsetMLP, OffsetTable, PositionBias
from ia_core.conformance import Case, cases
from ia_core.conformance import _oracle as oracle
from ia_core.conformance import _wide as wide
from ia_core.conformance._implementation import BASIC
from ia_core.conformance._tolerance import forward_bound, gradient_bound
from ia_core.conformance._truth import truth_of


def test_two_keys_by_hand() -> None:
    """Scores 0 and log 3 weigh 1/4 and 3/4."""
    query, key = np.ones((1, 1, 1)), np.zeros((1, 2, 1))
    truth = oracle.forward(query, key, np.asarray([[[0.0], [4.0]]]), np.asarray([0.0, math.log(3)]))
    assert truth.output.high == pytest.approx(3.0, abs=2e-15)
    assert truth.lse.high == pytest.approx(math.log(4), abs=1e-15)


def test_equal_scores_are_exact_rationals() -> None:
    """With equal scores the output is a mean, which rational arithmetic has exactly."""
    value = np.random.default_rng(0).standard_normal((1, 7, 3))
    truth = oracle.forward(np.zeros((1, 1, 2)), np.zeros((1, 7, 2)), value)
    for d in range(3):
        mean = sum(Fraction(float(x)) for x in value[0, :, d]) / 7
        whole = Fraction(float(truth.output.high[0, 0, d])) + Fraction(float(truth.output.low[0, 0, d]))
        assert abs(whole - mean) < Fraction(1, 2**100)


def test_error_is_measured_beyond_float64() -> None:
    third = oracle.forward(np.zeros((1, 1, 1)), np.zeros((1, 3, 1)), np.asarray([[[1.0], [0.0], [0.0]]])).output
    error = third.error_of(np.asarray([[[1 / 3]]]))
    assert error == pytest.approx(float(abs(Fraction(1 / 3) - Fraction(1, 3))), rel=1e-12)


def test_gradient_is_the_derivative() -> None:
    """Central differences of the oracle itself, with a step that float64 cannot spoil."""
    rng = np.random.default_rng(1)
    q, k, v, b = (rng.standard_normal(s) for s in ((2, 2, 3), (1, 4, 3), (1, 4, 2), (2, 1, 4)))
    mask = rng.random((2, 4)) < 0.8
    mask[:, 0] = True
    do = rng.standard_normal((2, 2, 2))
    grad = oracle.gradient(q, k, v, do, b, mask, 0.4)
    h = 2.0**-20

    def loss(**changed: np.ndarray) -> float:
        args = {"query": q, "key": k, "value": v, "bias": b} | changed
        out = oracle.forward(**args, mask=mask, scale=0.4).output
        return float(np.sum(do * out.high) + np.sum(do * out.low))

    for name, array in (("query", q), ("key", k), ("value", v), ("bias", b)):
        along = rng.standard_normal(array.shape)
        slope = (loss(**{name: array + h * along}) - loss(**{name: array - h * along})) / (2 * h)
        # h^2 times a third derivative of order 1, and 2^-53 / h of rounding.
        assert np.sum(getattr(grad, name).high * along) == pytest.approx(slope, abs=1e-8)


def naive_mlp(f: OffsetMLP | EdgeMLP, *inputs: float) -> list[float]:
    w1 = np.reshape(f.w1, (len(inputs), -1))
    hidden = [
        max(0.0, sum(t * w for t, w in zip(inputs, column, strict=True)) + b)
        for column, b in zip(w1.T, f.b1, strict=True)
    ]
    return [sum(x * w for x, w in zip(hidden, column, strict=True)) + b for column, b in zip(f.w2.T, f.b2, strict=True)]


def test_position_biases_by_their_definitions() -> None:
    rng = np.random.default_rng(2)

    def edge() -> EdgeMLP:
        return EdgeMLP(*(rng.standard_normal(s) for s in ((2, 3), (3,), (3, 2), (2,))))

    mlp = OffsetMLP(*(rng.standard_normal(s) for s in ((3,), (3,), (3, 2), (2,))))
    p, v = np.asarray([0.5, -1.25]), np.asarray([0.0, 1.0, 2.0])
    got = _floats(oracle.dense_bias(PositionBias(mlp, p, v)))
    for i, j in np.ndindex(2, 3):
        assert got[:, i, j] == pytest.approx(naive_mlp(mlp, v[j] - p[i]), abs=1e-14)

    boxes, grid = rng.random((2, 4)), Grid(np.asarray([0.0, 1.0, 2.0]), np.asarray([0.0, 1.0]))
    box = BoxMLP(edge(), edge())
    got = _floats(oracle.dense_bias(PositionBias(box, boxes, grid)))
    for i, r, c in np.ndindex(2, 2, 3):
        x0, y0, x1, y1 = boxes[i]
        x, y = naive_mlp(box.x, x0 - grid.x[c], x1 - grid.x[c]), naive_mlp(box.y, y0 - grid.y[r], y1 - grid.y[r])
        assert got[:, i, 3 * r + c] == pytest.approx(np.add(x, y), abs=1e-14)

    table = OffsetTable(np.asarray([[1.0, 5.0, 2.0]]))
    got = _floats(oracle.dense_bias(PositionBias(table, np.asarray([0.0, 0.5, 9.0]), np.asarray([0.0, 1.0]))))
    assert got[0].tolist() == [[5.0, 2.0], [3.0, 3.5], [1.0, 1.0]]

    linear = LinearOffset(np.asarray([2.0, 0.5]))
    got = _floats(oracle.dense_bias(PositionBias(linear, np.asarray([1.0]), np.asarray([0.0, 4.0]))))
    assert got[:, 0].tolist() == [[-2.0, -6.0], [-0.5, -1.5]]


def test_nothing_to_attend_to() -> None:
    truth = oracle.forward(np.ones((1, 1, 1)), np.ones((1, 2, 1)), np.ones((1, 2, 1)), np.full(2, -np.inf))
    assert truth.output.high == 0.0 and truth.lse.high == -np.inf


def _floats(balls: np.ndarray) -> np.ndarray:
    return np.vectorize(float)(balls)


@pytest.mark.parametrize("kind", ["none", "dense", "mlp", "real", "table", "linear", "box"])
@pytest.mark.parametrize("mask", ["none", "some", "rows"])
def test_float64_path_lies_within_its_bound_of_the_balls(kind: str, mask: str) -> None:
    """The path for large and coarse cases is a float64 implementation like any other."""

    @seed(0)
    @settings(max_examples=20, database=None, deadline=None, phases=[Phase.generate])
    @given(cases("float64", BASIC, bias=kind, mask=mask, least=2))
    def check(case: Any) -> None:
        truth, fast = (path.forward(**case.arguments) for path in (oracle, wide))
        bound = forward_bound(case, truth)
        assert np.all(truth.output.error_of(fast.output.high) <= bound.output)
        assert np.all(truth.lse.error_of(fast.lse.high) <= bound.lse)
        np.testing.assert_array_equal(np.isinf(truth.scores), np.isinf(fast.scores))
        if kind not in ("none", "dense"):
            return
        do = np.random.default_rng(case.seed).standard_normal(case.output_shape)
        arguments = (case.query, case.key, case.value, do, case.bias, case.mask, case.scale)
        exact, near = (path.gradient(*arguments) for path in (oracle, wide))
        bounds = gradient_bound(case, truth, exact, do)
        for name, allowed in bounds.items():
            assert np.all(getattr(exact, name).error_of(getattr(near, name).high) <= allowed), name

    check()


def test_a_ball_that_is_too_wide_is_no_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 53 bits the balls are as wide as the errors that are to be measured."""
    query, key, value = np.random.default_rng(0).standard_normal((3, 1, 4, 5))
    monkeypatch.setattr(oracle, "PRECISION", 53)
    with pytest.raises(RuntimeError, match="output too badly"):
        truth_of(Case(query, key, value))
