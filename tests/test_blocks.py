"""The pre-norm block: its composition, its branches, who sees whom."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ia_core import (
    feed_forward,
    init_transformer_block,
    layer_norm,
    multi_head_attention,
    transformer_block,
)

from .layer_cases import random_like

B, M, N, D_X, D_Y = 2, 3, 5, 7, 6


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def block(self_attention: bool) -> Any:
    return random_like(
        init_transformer_block(0, 8, 2, conditioning_width=D_X, content_width=D_Y, self_attention=self_attention)
    )


@pytest.mark.parametrize("self_attention", [False, True])
def test_block_is_the_stated_composition(self_attention: bool) -> None:
    params, hidden, x, y, bias = (
        block(self_attention),
        draw(B, M, 8),
        draw(B, N, D_X),
        draw(B, N, D_Y),
        draw(M, N),
    )
    h = hidden
    if self_attention:
        z = layer_norm(params.self_attention_norm, h)
        h = h + multi_head_attention(params.self_attention, z, z, z)
    o = multi_head_attention(params.attention, layer_norm(params.attention_norm, h), x, y, bias=bias)
    h = h + o
    h = h + feed_forward(params.feed_forward, layer_norm(params.feed_forward_norm, h))
    got = transformer_block(params, hidden, x, y, bias=bias)
    np.testing.assert_array_equal(got.hidden, h)
    np.testing.assert_array_equal(got.attended, o)
    assert got.landing is None


@pytest.mark.parametrize("self_attention", [False, True])
def test_every_residual_branch_goes_through_on_branch(self_attention: bool) -> None:
    params, hidden, x, y = block(self_attention), draw(B, M, 8), draw(B, N, D_X), draw(B, N, D_Y)
    shapes = []

    def drop(branch: np.ndarray) -> np.ndarray:
        shapes.append(branch.shape)
        return 0.0 * branch

    got = transformer_block(params, hidden, x, y, value_positions=np.arange(N), on_branch=drop)
    np.testing.assert_array_equal(got.hidden, hidden)
    assert shapes == [(B, M, 8)] * (3 if self_attention else 2)
    assert got.landing.shape == (B, 2, M) and abs(got.attended).max() > 0


def test_queries_meet_only_in_self_attention() -> None:
    hidden, x, y = draw(B, M, 8), draw(B, N, D_X), draw(B, N, D_Y)
    changed = hidden.copy()
    changed[:, 0] += draw(8)  # a constant would be invisible behind the norm
    for self_attention in (False, True):
        params = block(self_attention)
        difference = transformer_block(params, changed, x, y).hidden - transformer_block(params, hidden, x, y).hidden
        assert (abs(difference[:, 1:]).max() > 1e-6) == self_attention


def test_self_attention_and_its_norm_come_together() -> None:
    params = block(True)._replace(self_attention_norm=None)
    text = r"`TransformerBlock.self_attention` and `self_attention_norm` must both be given .* \[IA-X-14\]"
    with pytest.raises(ValueError, match=text):
        transformer_block(params, draw(B, M, 8), draw(B, N, D_X), draw(B, N, D_Y))
