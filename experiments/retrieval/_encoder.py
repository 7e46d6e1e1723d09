"""The picture encoder: which letter stands in each of 36 columns. Trained once for a draw of data, then frozen.

==================  =====================  ======================================================
array               shape                  meaning
==================  =====================  ======================================================
picture             (B, 16, 144)           uint8
features            (B, 36, 64)            one row for four pixels
==================  =====================  ======================================================
"""

from __future__ import annotations

from typing import Any, NamedTuple

import array_api_compat
import numpy as np

from ia_core import LayerNorm, Linear, init_layer_norm, init_linear, linear

from .._cache import Arrays
from .._convolution import conv1d, conv2d, group_norm, init_conv, relu
from .._frozen import frozen_parameters
from .._losses import cross_entropy, take
from .._train import Problem, Recipe, batches

__all__ = ["WIDTH", "Encoder", "frozen", "see"]

WIDTH = 64


class Encoder(NamedTuple):
    """Two convolutions of stride 2, one over all rows, a residual one along the columns, and a classifier."""

    first: Linear
    first_norm: LayerNorm
    second: Linear
    second_norm: LayerNorm
    rows: Linear
    norm: LayerNorm
    along: Linear
    classes: Linear


def init_encoder(seed: Any) -> Encoder:
    """Random parameters."""
    rng, d = np.random.default_rng(seed), WIDTH
    return Encoder(
        init_conv(rng, 9, 1, 32),
        init_layer_norm(32),
        init_conv(rng, 9, 32, d),
        init_layer_norm(d),
        init_conv(rng, 4, d, d),
        init_layer_norm(d),
        init_conv(rng, 3, d, d),
        init_linear(rng, d, 27),
    )


def see(params: Encoder, picture: Any) -> Any:
    """Features (B, 36, WIDTH) of pictures (B, 16, 144)."""
    xp = array_api_compat.array_namespace(picture)
    x = (xp.astype(picture, params.first.weight.dtype) / 255.0 - 0.5)[..., None] * 3.0
    x = relu(group_norm(params.first_norm, conv2d(params.first, x, stride=2)))
    x = relu(group_norm(params.second_norm, conv2d(params.second, x, stride=2)))  # (B, 4, 36, d)
    x = xp.concat([x[:, row, :, :] for row in range(4)], axis=-1) @ params.rows.weight + params.rows.bias
    return x + conv1d(params.along, relu(group_norm(params.norm, x)))


def frozen(draw: int, data: Arrays, trainer: Any, *, quick: bool) -> Encoder:
    """The encoder of a draw; trained if it is not in the cache."""

    def loss(params: Any, own: Any, shared: Any, index: Any, draws: Any) -> Any:
        batch = take(shared, index)
        return cross_entropy(linear(params.classes, see(params, batch["picture"])), batch["columns"])

    recipe = Recipe(10 if quick else 500, 64, 4e-3, 1e-2)
    shared = {"picture": data["train_picture"], "columns": data["train_columns"]}
    index = batches(0, len(data["train_picture"]), recipe)[:, None]
    problem = Problem(loss, [init_encoder([draw, 31])], {}, shared, index, {})
    return frozen_parameters(f"retrieval-encoder{'-quick' if quick else ''}{draw}", problem, recipe, trainer)
