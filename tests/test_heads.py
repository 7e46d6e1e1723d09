"""Multi-head indirect attention, against loops over its heads and queries."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ia_core import (
    Linear,
    LinearOffset,
    MultiHead,
    PositionBias,
    attention_weights,
    indirect_attention,
    init_multi_head,
    linear,
    multi_head_attention,
    to_library,
)

from .layer_cases import CLOSE, GRAPHS, MODULES, on_library, random_like

B, M, N, H, HK, D, DV = 2, 3, 5, 4, 2, 3, 2
D_MODEL, D_X, D_Y, D_OUT = 12, 7, 6, 5


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def heads(**options: Any) -> MultiHead:
    sizes = {"key_heads": HK, "head_width": D, "value_width": DV}
    widths = {"conditioning_width": D_X, "content_width": D_Y, "outputs": D_OUT}
    return random_like(init_multi_head(0, D_MODEL, H, **(sizes | widths | options)))


def inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return draw(B, M, D_MODEL), draw(B, N, D_X), draw(B, N, D_Y)


def by_loops(params: MultiHead, q_in: np.ndarray, x: np.ndarray, y: np.ndarray, bias: Any, mask: Any) -> Any:
    """Multi-head attention for each head and query alone: (output, landing)."""
    output = np.zeros((B, M, H, DV))
    landing = np.zeros((B, H, M))
    for b, h, i in np.ndindex(B, H, M):
        g = h // (H // HK)
        query = q_in[b, i].reshape(H, D)[h]
        if params.query is not None:
            query = q_in[b, i] @ params.query.weight[:, h] + params.query.bias[h]
        keys = x[b] @ params.key.weight[:, g] + params.key.bias[g]
        values = y[b] @ params.value.weight[:, g] + params.value.bias[g]
        scores = keys @ query / math.sqrt(D) + (0 if bias is None else bias[h, i])
        weights = np.exp(scores - scores.max()) * (1 if mask is None else mask[b, 0, i])
        weights = weights / weights.sum()
        output[b, i, h], landing[b, h, i] = weights @ values, weights @ np.arange(N)
    if params.output is None:
        return output.reshape(B, M, H * DV), landing
    projected = sum(output[:, :, h] @ params.output.weight[h] for h in range(H))
    return projected + (0 if params.output.bias is None else params.output.bias), landing


@pytest.mark.parametrize("options", [{}, {"project_query": False}, {"project_output": False}, {"bias": True}])
@pytest.mark.parametrize("extra", ["nothing", "bias", "mask"])
def test_multi_head_against_loops(options: dict[str, Any], extra: str) -> None:
    params, (queries, x, y) = heads(**options), inputs()
    bias = draw(H, M, N) if extra != "nothing" else None
    mask = draw(B, 1, M, N) > -0.7 if extra == "mask" else None
    assert mask is None or mask.any(-1).all()
    wanted, landed = by_loops(params, queries, x, y, bias, mask)
    got = multi_head_attention(params, queries, x, y, bias=bias, mask=mask)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=CLOSE)
    got, landing = multi_head_attention(params, queries, x, y, bias=bias, mask=mask, value_positions=np.arange(N))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=CLOSE)
    np.testing.assert_allclose(landing, landed, rtol=0, atol=CLOSE)


def test_projections_without_biases() -> None:
    params = heads(bias=False)
    zeros = params._replace(
        query=params.query._replace(bias=np.zeros((H, D))),
        key=params.key._replace(bias=np.zeros((HK, D))),
        value=params.value._replace(bias=np.zeros((HK, DV))),
        output=params.output._replace(bias=np.zeros(D_OUT)),
    )
    np.testing.assert_array_equal(multi_head_attention(params, *inputs()), multi_head_attention(zeros, *inputs()))


@pytest.mark.parametrize("name", MODULES | GRAPHS)
def test_multi_head_on_every_library(name: str) -> None:
    params, (queries, x, y) = heads(), inputs()
    bias = PositionBias(LinearOffset(np.asarray([0.5, 0.25, 1.0, 0.0])), np.arange(M), np.arange(N))
    mask = draw(B, 1, M, N) > -0.7
    options = {"bias": bias, "mask": mask, "value_positions": np.arange(N)}
    wanted, wanted_landing = multi_head_attention(params, queries, x, y, **options)
    output, landing = on_library(name, multi_head_attention, params, queries, x, y, **options)
    np.testing.assert_allclose(output, wanted, rtol=0, atol=CLOSE)
    np.testing.assert_allclose(landing, wanted_landing, rtol=0, atol=CLOSE)


def test_queries_are_equivariant_and_positions_invariant() -> None:
    params, (queries, x, y), bias = heads(), inputs(), draw(H, M, N)
    base = multi_head_attention(params, queries, x, y, bias=bias)
    rows, columns = np.asarray([2, 0, 1]), np.asarray([3, 1, 4, 0, 2])
    np.testing.assert_allclose(
        multi_head_attention(params, queries[:, rows], x, y, bias=bias[:, rows]), base[:, rows], atol=CLOSE
    )
    together = multi_head_attention(params, queries, x[:, columns], y[:, columns], bias=bias[:, :, columns])
    np.testing.assert_allclose(together, base, rtol=0, atol=CLOSE)
    misaligned = multi_head_attention(params, queries, x[:, columns], y, bias=bias)
    assert abs(misaligned - base).max() > 0.01


def test_landing_is_the_expected_position() -> None:
    params, (queries, x, y) = heads(), inputs()
    positions = draw(B, N)
    _, landing = multi_head_attention(params, queries, x, y, value_positions=positions)
    query = np.moveaxis(linear(params.query, queries), -2, -3)
    key = np.moveaxis(linear(params.key, x), -2, -3)
    wanted = attention_weights(query, key) @ positions[:, None, :, None]
    np.testing.assert_allclose(landing, wanted[..., 0], rtol=0, atol=CLOSE)


def test_landing_keeps_large_positions_in_half_precision() -> None:
    """4001 is no float16; a huge bias attends to it alone."""
    params = to_library(heads(), np, dtype="float16")
    queries, x, y = (array.astype("float16") for array in inputs())
    bias = np.zeros((H, M, N), dtype="float16")
    bias[..., 2] = 3e4
    positions = np.asarray([3999, 4000, 4001, 4002, 4003])
    output, landing = multi_head_attention(params, queries, x, y, bias=bias, value_positions=positions)
    assert output.dtype == np.float16 and landing.dtype == np.float32
    np.testing.assert_array_equal(landing, np.full((B, H, M), 4001.0))
    np.testing.assert_array_equal(output, multi_head_attention(params, queries, x, y, bias=bias))


def test_content_behind_the_mask_has_no_influence() -> None:
    params, (queries, x, y) = heads(), inputs()
    mask = np.asarray([True, True, False, True, False])
    base = multi_head_attention(params, queries, x, y, mask=mask, value_positions=np.arange(N))
    x[:, 2], y[:, 4] = np.nan, np.inf
    positions = np.where(mask, np.arange(N), np.nan)
    with np.errstate(invalid="ignore"):  # inf - inf in the projection of what is then masked
        got = multi_head_attention(params, queries, x, y, mask=mask, value_positions=positions)
    np.testing.assert_array_equal(got[0], base[0])
    np.testing.assert_array_equal(got[1], base[1])


def test_another_attention_is_used_where_given() -> None:
    calls = []

    def spy(*arguments: Any, **options: Any) -> Any:
        calls.append(options)
        return indirect_attention(*arguments, **options)

    params = heads()
    got = multi_head_attention(params, *inputs(), scale=0.5, attention=spy)
    np.testing.assert_array_equal(got, multi_head_attention(params, *inputs(), scale=0.5))
    assert calls == [{"bias": None, "mask": None, "scale": 0.5}]


@pytest.mark.parametrize(
    ("change", "place", "value", "error", "text"),
    [
        ({"key": None}, None, None, TypeError, r"`MultiHead.key` must be a Linear; got NoneType \[IA-X-14\]"),
        (
            {"key": Linear(np.ones((D_X, D)))},
            None,
            None,
            ValueError,
            r"`MultiHead.key.weight` must have shape \(any, any, any\); got \(7, 3\) \[IA-X-14\]",
        ),
        (
            {"value": Linear(np.ones((D_Y, 3, DV)))},
            None,
            None,
            ValueError,
            r"`MultiHead.value.weight` must have shape \(any, 2, any\); got \(6, 3, 2\) \[IA-X-14\]",
        ),
        (
            {"query": Linear(np.ones((D_MODEL, H, D + 1)))},
            None,
            None,
            ValueError,
            r"`MultiHead.query.weight` must have shape \(any, any, 3\); got \(12, 4, 4\) \[IA-X-14\]",
        ),
        (
            {"output": Linear(np.ones((H, DV + 1, D_OUT)))},
            None,
            None,
            ValueError,
            r"`MultiHead.output.weight` must have shape \(4, 2, any\); got \(4, 3, 5\) \[IA-X-14\]",
        ),
        (
            {"output": Linear(np.ones((H, DV, D_OUT)), np.ones((DV, D_OUT)))},
            None,
            None,
            ValueError,
            r"`MultiHead.output.bias` must have shape \(5\,\); got \(2, 5\) \[IA-X-14\]",
        ),
        (
            {"query": None},
            0,
            np.ones((B, M, 13)),
            ValueError,
            r"`queries` must have a multiple of the head width D = 3 on .* \(2, 3, 13\) \[IA-X-30\]",
        ),
        (
            {},
            0,
            np.ones((B, M, 5)),
            ValueError,
            r"`queries` must have the parameters' 12 features .* \[IA-X-30\]",
        ),
        ({}, 1, np.ones((B, N, 5)), ValueError, r"`conditioning` must have the parameters' 7 .* \[IA-X-30\]"),
        (
            {},
            2,
            np.ones((B, N, 5)),
            ValueError,
            r"`content` must have the parameters' 6 features .* \[IA-X-30\]",
        ),
        (
            {},
            2,
            np.ones((B, 4, D_Y)),
            ValueError,
            r"`value` must have the N = 5 positions of key; .* \[IA-X-07\]",
        ),
        ({}, 0, "queries", TypeError, r"`queries` must be an array; got str \[IA-X-01\]"),
    ],
)
def test_bad_input_of_multi_head(
    change: dict[str, Any], place: int | None, value: Any, error: type[Exception], text: str
) -> None:
    arguments = [value if number == place else array for number, array in enumerate(inputs())]
    with pytest.raises(error, match=text):
        multi_head_attention(heads()._replace(**change), *arguments)


def test_bad_value_positions() -> None:
    text = r"`value_positions` must have shape \(..., N\) with N = 5; got \(4,\) \[IA-X-30\]"
    with pytest.raises(ValueError, match=text):
        multi_head_attention(heads(), *inputs(), value_positions=np.arange(4))
