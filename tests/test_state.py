"""The laws of AttentionState, and tiling over the keys."""

from __future__ import annotations

import math
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from ia_core import AttentionState, empty_state, indirect_attention, merge_states, partial_attention
from ia_core.conformance import Case
from ia_core.conformance._clause import truth_of

U = 2.0**-53
SHAPE = (2, 3, 4)


@st.composite
def states(draw: st.DrawFn) -> AttentionState:
    """A state with some rows empty and lse up to thousands apart."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lse = rng.uniform(-1, 1, SHAPE[:-1]) * draw(st.sampled_from([1.0, 30.0, 3000.0]))
    empty = rng.random(SHAPE[:-1]) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    output = np.where(empty[..., None], 0.0, rng.standard_normal(SHAPE))
    return AttentionState(output, np.where(empty, -math.inf, lse))


laws = settings(max_examples=200, deadline=None, database=None)


def close(one: AttentionState, other: AttentionState, size: np.ndarray) -> None:
    """Equal up to the rounding of two merges.

    A merge rounds the difference of two lse (u |lse|, as a relative error of a weight), two exponentials, a sum, a
    quotient, two products and a sum: fewer than (12 + 4 |lse|) u of the largest part, each; two merges twice that.
    """
    lse = np.where(np.isinf(one.lse), 0.0, np.abs(one.lse))
    slack = 2 * (12 + 4 * np.maximum(lse, size)) * U
    assert np.array_equal(np.isinf(one.lse), np.isinf(other.lse))
    with np.errstate(invalid="ignore"):
        assert np.all((one.lse == other.lse) | (np.abs(one.lse - other.lse) <= slack))
    assert np.all(np.abs(one.output - other.output) <= slack[..., None] * 5)  # outputs drawn are below 5


def largest_lse(*parts: AttentionState) -> np.ndarray:
    return np.max([np.where(np.isinf(p.lse), 0.0, np.abs(p.lse)) for p in parts], axis=0)


@seed(0)
@laws
@given(states(), states())
def test_commutative_to_the_bit(a: AttentionState, b: AttentionState) -> None:
    one, other = merge_states(a, b), merge_states(b, a)
    assert np.array_equal(one.output, other.output) and np.array_equal(one.lse, other.lse)


@seed(0)
@laws
@given(states(), states(), states())
def test_associative_up_to_rounding(a: AttentionState, b: AttentionState, c: AttentionState) -> None:
    left, right = merge_states(merge_states(a, b), c), merge_states(a, merge_states(b, c))
    close(left, right, largest_lse(a, b, c))


@seed(0)
@laws
@given(states())
def test_identity_to_the_bit(a: AttentionState) -> None:
    nothing = empty_state(SHAPE, like=a.output)
    for merged in (merge_states(a, nothing), merge_states(nothing, a)):
        assert np.array_equal(merged.output, a.output) and np.array_equal(merged.lse, a.lse)


def test_two_empty_parts_are_empty() -> None:
    nothing = empty_state(SHAPE, like=np.zeros(1))
    merged = merge_states(nothing, nothing)
    assert np.all(merged.output == 0.0) and np.all(merged.lse == -math.inf)


@pytest.mark.parametrize("tile", range(1, 9))
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_tiled_equals_untiled(tile: int, dtype: str) -> None:
    """Every tile size from 1 to N + 1, with a mask that empties a row and whole tiles, against the truth."""
    rng = np.random.default_rng(3)
    N = 7
    query, key, value = (rng.standard_normal(s).astype(dtype) for s in ((2, 4, 3, 5), (2, 2, N, 5), (2, 2, N, 4)))
    bias = rng.standard_normal((4, 3, N)).astype(dtype)
    mask = rng.random((2, 1, 3, N)) < 0.6
    mask[..., 2, :] = False
    mask[1, ..., :4] = False
    parts = [
        partial_attention(
            query,
            key[..., j : j + tile, :],
            value[..., j : j + tile, :],
            bias=bias[..., j : j + tile],
            mask=mask[..., j : j + tile],
        )
        for j in range(0, N, tile)
    ]
    assert parts[0].output.dtype == np.dtype("float32" if dtype == "float16" else dtype)
    merged = reduce(merge_states, parts)
    case = Case(query, key, value, bias, mask)
    truth, bound = truth_of(case)
    # Each merge adds roundings like those counted in (c_N + 8) u once more.
    u = 2.0**-53 if dtype == "float64" else 2.0**-24
    merges = len(parts) * 12 * u * np.abs(value).max()
    assert np.all(truth.output.error_of(merged.output.astype(np.float64)) <= bound.output + merges)
    whole, lse = indirect_attention(query, key, value, bias=bias, mask=mask, return_lse=True)
    assert np.all(truth.output.error_of(whole.astype(np.float64)) <= bound.output)
    assert np.array_equal(np.isinf(lse), np.isinf(merged.lse))


def test_a_part_without_keys_is_the_identity() -> None:
    rng = np.random.default_rng(4)
    query, key, value = (rng.standard_normal((2, 3, 4)) for _ in range(3))
    part = partial_attention(query, key[:, :0], value[:, :0])
    whole = partial_attention(query, key, value)
    merged = merge_states(part, whole)
    assert np.array_equal(merged.output, whole.output) and np.array_equal(merged.lse, whole.lse)


@pytest.mark.parametrize(
    ("other", "error", "text"),
    [
        (np.zeros(SHAPE), TypeError, "`other` must be an AttentionState; got ndarray [IA-X-17]"),
        (AttentionState(np.zeros((2, 3, 5)), np.zeros((2, 3))), ValueError, "`other` must have the shapes of one"),
        (AttentionState(np.zeros(SHAPE, np.float32), np.zeros(SHAPE[:-1], np.float32)), TypeError, "the dtype of one"),
        (AttentionState(np.zeros(SHAPE, np.float16), np.zeros(SHAPE[:-1])), TypeError, "must be float32 or float64"),
    ],
)
def test_states_that_do_not_fit(other: object, error: type[Exception], text: str) -> None:
    state = AttentionState(np.zeros(SHAPE), np.zeros(SHAPE[:-1]))
    with pytest.raises(error, match=r"\[IA-X-17\]") as caught:
        merge_states(state, other)  # type: ignore[arg-type]
    assert text in str(caught.value)
