"""Affine map, normalisation and feed-forward network, against plain NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ia_core import (
    FeedForward,
    LayerNorm,
    Linear,
    feed_forward,
    init_feed_forward,
    init_layer_norm,
    init_linear,
    layer_norm,
    linear,
    to_library,
)

from .layer_cases import CLOSE, as_numpy, library, random_like


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


@pytest.mark.parametrize("outputs", [(4,), (2, 3), (2, 1, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(outputs: tuple[int, ...], bias: bool) -> None:
    params = init_linear(0, 6, outputs, bias=bias, dtype="float64")
    x = draw(3, 5, 6)
    wanted = np.tensordot(x, params.weight, 1) + (params.bias if bias else 0.0)
    got = linear(params, x)
    assert got.shape == (3, 5, *outputs)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=CLOSE)


def test_layer_norm() -> None:
    params, x = random_like(init_layer_norm(8)), draw(3, 8)
    got = layer_norm(params, x, eps=0.1)
    wanted = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.1)
    np.testing.assert_allclose(got, wanted * params.weight + params.bias, rtol=0, atol=CLOSE)


def test_layer_norm_sees_neither_shift_nor_scale() -> None:
    params, x = random_like(init_layer_norm(8)), draw(3, 8)
    np.testing.assert_allclose(layer_norm(params, x + 3.0), layer_norm(params, x), rtol=0, atol=CLOSE)
    # Against the scaled variance eps is as nothing: a relative change of at most eps / (2 variance), of numbers
    # that are at most sqrt(7), the largest a normed one of 8 can be, times the weight.
    bound = 1e-5 / (2.0 * x.var(-1).min()) * math.sqrt(7.0) * abs(params.weight).max()
    np.testing.assert_allclose(layer_norm(params, 1000.0 * x), layer_norm(params, x), rtol=0, atol=bound)


def test_feed_forward_is_within_the_stated_distance_of_the_exact_gelu() -> None:
    z = np.linspace(-12.0, 12.0, 240_001)
    identity = FeedForward(np.ones((1, 1)), np.zeros(1), np.ones((1, 1)), np.zeros(1))
    got = feed_forward(identity, z[:, None])[:, 0]
    exact = np.asarray([0.5 * one * (1.0 + math.erf(one / math.sqrt(2.0))) for one in z])
    distance = abs(got - exact)
    assert distance.max() < 5e-4
    assert distance.max() > 4e-4  # it is the tanh form, and the statement is not idle


def test_feed_forward_composes_its_parts() -> None:
    params, x = random_like(init_feed_forward(0, 4, 7, outputs=3)), draw(2, 5, 4)
    inner = x @ params.w1 + params.b1
    inner = inner / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
    np.testing.assert_allclose(feed_forward(params, x), inner @ params.w2 + params.b2, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_computed_in_float32_and_rounded_once(dtype: str) -> None:
    torch = library("torch")
    half = getattr(torch, dtype)
    cases = [
        (linear, init_linear(0, 8, (2, 3))),
        (layer_norm, init_layer_norm(8)),
        (feed_forward, init_feed_forward(0, 8, 16)),
    ]
    for function, params in cases:
        params = to_library(random_like(params), torch, dtype=half)
        x = to_library(draw(4, 8), torch, dtype=half)
        got = function(params, x)
        wide = function(to_library(params, torch, dtype="float32"), x.float())
        assert got.dtype == half
        assert torch.equal(got, wide.to(half))


LINEAR, NORM = Linear(np.ones((3, 2)), np.ones(2)), LayerNorm(np.ones(3), np.ones(3))
FORWARD = FeedForward(np.ones((3, 4)), np.ones(4), np.ones((4, 2)), np.ones(2))
X = np.ones((5, 3))


@pytest.mark.parametrize(
    ("function", "params", "x", "error", "text"),
    [
        (linear, LINEAR, [1.0], TypeError, r"`x` must be an array; got list \[IA-X-01\]"),
        (
            linear,
            LINEAR,
            np.ones((5, 3), dtype=int),
            TypeError,
            r"`x` must be float16, .*; got int64 \[IA-X-03\]",
        ),
        (
            linear,
            LINEAR,
            np.ones((5, 3), dtype="float32"),
            TypeError,
            r"`x` must have the dtype of the parameters, float64; got float32 \[IA-X-30\]",
        ),
        (
            linear,
            LINEAR,
            np.ones((5, 2)),
            ValueError,
            r"`x` must have the parameters' 3 features on its last axis; got \(5, 2\) \[IA-X-30\]",
        ),
        (
            linear,
            LINEAR,
            np.ones(()),
            ValueError,
            r"`x` must have the parameters' 3 features .* got \(\) \[IA-X-30\]",
        ),
        (
            layer_norm,
            NORM,
            np.ones((5, 2)),
            ValueError,
            r"`x` must have the parameters' 3 features .* \[IA-X-30\]",
        ),
        (
            feed_forward,
            FORWARD,
            np.ones((5, 2)),
            ValueError,
            r"`x` must have the parameters' 3 .* \[IA-X-30\]",
        ),
        (linear, NORM, X, TypeError, r"`Linear` must be a Linear; got LayerNorm \[IA-X-14\]"),
        (
            linear,
            LINEAR._replace(bias=np.ones(3)),
            X,
            ValueError,
            r"`Linear.bias` must have shape \(2\,\); got \(3,\) \[IA-X-14\]",
        ),
        (
            linear,
            LINEAR._replace(bias=np.ones(2, dtype="float32")),
            X,
            TypeError,
            r"`Linear` must have parameters of one floating dtype; got \['float32', 'float64'\] \[IA-X-14\]",
        ),
        (
            layer_norm,
            NORM._replace(bias=np.ones(2)),
            X,
            ValueError,
            r"`LayerNorm.bias` must have shape \(3\,\); got \(2,\) \[IA-X-14\]",
        ),
        (
            feed_forward,
            FORWARD._replace(w2=np.ones((5, 2))),
            X,
            ValueError,
            r"`FeedForward.w2` must have shape \(4, any\); got \(5, 2\) \[IA-X-14\]",
        ),
    ],
)
def test_bad_input_of_layers(function: Any, params: Any, x: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        function(params, x)


def test_mixed_libraries() -> None:
    torch = library("torch")
    with pytest.raises(TypeError, match=r"`x` and `params` are on different libraries: .* \[IA-X-01\]"):
        linear(LINEAR, torch.ones((5, 3), dtype=torch.float64))
    assert as_numpy(linear(to_library(LINEAR, torch), torch.ones((5, 3), dtype=torch.float64))).shape == (
        5,
        2,
    )
