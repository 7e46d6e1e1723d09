"""Scores of pairs of a picture and a word: attention with moving segments, and a dual encoder without attention.

Keys come from the picture's columns, values from the word stretched over them (indirect) or from the columns again
(cross). Each letter is a query; its segment starts as an equal share of the picture and moves by
:func:`ia_core.position_aware_update`. The score of a pair is the mean over the letters.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import array_api_compat
import numpy as np

from ia_core import (
    EdgeMLP,
    LayerNorm,
    Linear,
    PositionAwareUpdate,
    TransformerBlock,
    init_layer_norm,
    init_linear,
    init_transformer_block,
    init_update,
    layer_norm,
    linear,
    position_aware_update,
    transformer_block,
)

from .._convolution import conv1d, init_conv, relu
from .._positions import edge_bias, init_segment_bias, sinusoids, start_alike
from ._data import COLUMNS, LETTERS
from ._encoder import WIDTH, Encoder

__all__ = ["Dual", "Scorer", "embed_pictures", "embed_words", "init_dual", "init_scorer", "score"]

HEADS, LAYERS, HIDDEN, SHARE = 4, 2, 12, 0.7  # SHARE of the picture that a word is first taken to fill


class Features(NamedTuple):
    """Letters and columns, made comparable."""

    letters: Any
    letter_convolution: Linear
    letter_norm: LayerNorm
    column_convolution: Linear
    column_norm: LayerNorm
    column_places: Linear
    value_places: Linear
    letter_places: Linear


class Layer(NamedTuple):
    """A block, its bias, and the update of the segment's centre."""

    block: TransformerBlock
    bias: EdgeMLP | None
    centre: PositionAwareUpdate


class Scorer(NamedTuple):
    """A model of pairs."""

    features: Features
    embedding: Any
    layers: tuple[Layer, ...]
    norm: LayerNorm
    first: Linear
    last: Linear


class Dual(NamedTuple):
    """Two encoders that meet in one vector each."""

    features: Features
    picture: tuple[Linear, Linear, Linear]
    word: tuple[Linear, Linear, Linear]
    temperature: Any


def init_scorer(seed: Any, encoder: Encoder, *, bias: bool) -> Scorer:
    """Random parameters; queries and keys start as the same map."""
    rng, d = np.random.default_rng(seed), WIDTH
    return Scorer(
        _init_features(rng, encoder),
        (0.02 * rng.standard_normal((LETTERS, d))).astype(np.float32),
        tuple(_init_layer(rng, bias) for _ in range(LAYERS)),
        init_layer_norm(d + 2),
        init_linear(rng, d + 2, d),
        init_linear(rng, d, 1),
    )


def init_dual(seed: Any, encoder: Encoder) -> Dual:
    """Random parameters."""
    rng, d = np.random.default_rng(seed), WIDTH
    picture = (init_conv(rng, 5, d, d), init_linear(rng, d, 2 * d), init_linear(rng, 2 * d, d))
    word = (init_conv(rng, 3, d, d), init_linear(rng, d, 2 * d), init_linear(rng, 2 * d, d))
    return Dual(_init_features(rng, encoder), picture, word, np.asarray([2.0], np.float32))


def _init_features(rng: np.random.Generator, encoder: Encoder) -> Features:
    d = WIDTH
    rows = encoder.classes.weight.T
    rows = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + 1e-5)
    rows[0] = 0.0
    return Features(
        rows.astype(np.float32),
        init_conv(rng, 3, d, d),
        init_layer_norm(d),
        init_conv(rng, 3, d, d),
        init_layer_norm(d),
        init_linear(rng, d, d),
        init_linear(rng, d, d),
        init_linear(rng, d, d),
    )


def _init_layer(rng: np.random.Generator, bias: bool) -> Layer:
    block = init_transformer_block(rng, WIDTH, HEADS, feed_forward=2 * WIDTH)
    centre = init_update(rng, "position-aware", WIDTH, hidden=WIDTH, heads=HEADS)
    return Layer(
        block._replace(attention=start_alike(block.attention, 2.0)),
        init_segment_bias(rng, HEADS, HIDDEN, [0.0, 0.5, 1.0, 2.0]) if bias else None,
        centre._replace(pull=np.asarray([0.0, 0.1, 0.3, 0.5], np.float32)),
    )


def score(params: Scorer, columns: Any, words: Any, options: Any) -> Any:
    """Scores (B,) of features of pictures (B, 36, d) and words (B, 10)."""
    xp = array_api_compat.array_namespace(columns)
    where = {"dtype": columns.dtype, "device": array_api_compat.device(columns)}
    places, numbers = xp.arange(COLUMNS, **where) + 0.5, xp.arange(LETTERS, **where)
    there = xp.astype(words > 0, columns.dtype)  # (B, 10)
    count = xp.sum(there, axis=-1)[:, None]
    step = COLUMNS * SHARE / count
    x, t = _columns(params.features, columns), _letters(params.features, words)
    x = x + linear(params.features.column_places, sinusoids(places, WIDTH))
    t = t + linear(params.features.letter_places, sinusoids(3.5 * numbers, WIDTH))
    if options.model == "cross":
        values = x
    else:
        source = (xp.floor(places / step)[..., None] == numbers) & (words > 0)[:, None, :]  # (B, 36, 10)
        spread = xp.astype(source, columns.dtype) @ t
        values = spread + linear(params.features.value_places, sinusoids(places, WIDTH))
    hidden, centre = params.embedding + t, (numbers + 0.5) * step
    for layer in params.layers:
        bias = None
        if layer.bias is not None:
            bias = edge_bias(layer.bias, centre - step / 2.0, centre + step / 2.0, places, 0.5)
        result = transformer_block(layer.block, hidden, x, values, bias=bias, value_positions=places)
        hidden = result.hidden
        centre = position_aware_update(layer.centre, centre, result.attended, result.landing)
    apart = xp.concat([centre[:, 1:] - centre[:, :-1], xp.zeros_like(centre[:, :1])], axis=-1)
    told = xp.concat([hidden, centre[..., None] / 18.0 - 1.0, apart[..., None] / 4.0], axis=-1)
    each = linear(params.last, relu(linear(params.first, layer_norm(params.norm, told))))[..., 0]
    return xp.sum(each * there, axis=-1) / count[:, 0]


def embed_pictures(params: Dual, columns: Any) -> Any:
    """Unit vectors (B, d) of pictures."""
    xp = array_api_compat.array_namespace(columns)
    where = {"dtype": columns.dtype, "device": array_api_compat.device(columns)}
    x = _columns(params.features, columns)
    x = x + linear(params.features.column_places, sinusoids(3.5 * (xp.arange(COLUMNS, **where) + 0.5), WIDTH))
    first, second, third = params.picture
    return _unit(linear(third, xp.mean(relu(linear(second, relu(conv1d(first, x)))), axis=1)))


def embed_words(params: Dual, words: Any) -> Any:
    """Unit vectors (B, d) of words."""
    t = _letters(params.features, words)
    xp = array_api_compat.array_namespace(t)
    where = {"dtype": t.dtype, "device": array_api_compat.device(t)}
    there = xp.astype(words > 0, t.dtype)
    t = t + linear(params.features.letter_places, sinusoids(3.5 * xp.arange(LETTERS, **where), WIDTH))
    first, second, third = params.word
    inner = relu(linear(second, relu(conv1d(first, t)))) * there[..., None]
    return _unit(linear(third, xp.sum(inner, axis=1) / xp.sum(there, axis=1)[:, None]))


def _columns(params: Features, columns: Any) -> Any:
    return layer_norm(params.column_norm, columns + conv1d(params.column_convolution, columns))


def _letters(params: Features, words: Any) -> Any:
    xp = array_api_compat.array_namespace(words)
    rows = xp.take(params.letters, xp.reshape(words, (-1,)), axis=0)
    t = xp.reshape(rows, (*words.shape, WIDTH))
    return layer_norm(params.letter_norm, t + conv1d(params.letter_convolution, t))


def _unit(x: Any) -> Any:
    xp = array_api_compat.array_namespace(x)
    return x / xp.sqrt(xp.sum(x * x, axis=-1, keepdims=True) + 1e-12)
