"""Decoders of one-shot detection: keys from the query image, values from the target image, joined by a box bias.

The bias is the reference's: :class:`ia_core.BoxMLP` on :func:`ia_core.box_offsets` of each query's present box, which
:func:`ia_core.box_update` refines between the layers (section 6.2 of arXiv 2509.26015).

==================  =====================  ======================================================
array               shape                  meaning
==================  =====================  ======================================================
target, query       (B, 12, 12, d)         features; the query's grid of 6 x 6 is interpolated
boxes               (B, M, 4)              centre and size as fractions, M = 16 queries
scores              (B, M)                 logits of "an object of the class stands here"
==================  =====================  ======================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import array_api_compat
import numpy as np

from ia_core import (
    BoxMLP,
    BoxOffsets,
    BoxUpdate,
    FeedForward,
    Grid,
    LayerNorm,
    Linear,
    MultiHead,
    box_offsets,
    box_update,
    feed_forward,
    indirect_attention,
    init_box_mlp,
    init_feed_forward,
    init_layer_norm,
    init_linear,
    init_multi_head,
    init_update,
    layer_norm,
    linear,
    multi_head_attention,
)

from .._convolution import conv2d, group_norm, init_conv, relu
from .._positions import detached, start_alike
from ._backbone import GRID, WIDTH, Backbone

__all__ = ["CELLS", "Detector", "Layer", "corners", "decode", "detect", "init_detector", "pixel_centres"]

HEADS, LAYERS, CELLS, HIDDEN = 4, 2, 4, 32  # CELLS x CELLS object queries
START = 0.28  # of the side: a box before the first refinement


class Layer(NamedTuple):
    """A decoder layer; `query_attention` stands in double cross-attention alone."""

    self_norm: LayerNorm
    self_attention: MultiHead
    query_norm: LayerNorm | None
    query_attention: MultiHead | None
    norm: LayerNorm
    attention: MultiHead
    bias: BoxMLP | None
    feed_norm: LayerNorm
    feed: FeedForward
    box: BoxUpdate
    score: Linear


class Detector(NamedTuple):
    """All parameters behind the frozen backbone."""

    neck: Linear
    neck_norm: LayerNorm
    shared: Linear
    shared_norm: LayerNorm
    key_places: Linear
    value_places: Linear
    query_places: Linear
    query_content: Linear
    embedding: Any
    layers: tuple[Layer, ...]


def init_detector(seed: Any, backbone: Backbone, options: Any) -> Detector:
    """Random parameters; the map that query and target share starts as the backbone's own."""
    rng, d = np.random.default_rng(seed), WIDTH
    return Detector(
        init_conv(rng, 9, d, d),
        init_layer_norm(d),
        Linear(backbone.embed.weight.copy(), backbone.embed.bias.copy()),
        init_layer_norm(d),
        init_linear(rng, d, d),
        init_linear(rng, d, d),
        init_linear(rng, d, d),
        Linear(np.eye(d, dtype=np.float32), np.zeros(d, np.float32)),
        (0.02 * rng.standard_normal((CELLS * CELLS, d))).astype(np.float32),
        tuple(_init_layer(rng, options) for _ in range(LAYERS)),
    )


def _init_layer(rng: np.random.Generator, options: Any) -> Layer:
    d, double = WIDTH, options.model == "double"
    attention = start_alike(init_multi_head(rng, d, HEADS), 1.7)
    if options.position_heads:
        # Half of the heads start by position: their scores of content begin near 0.
        assert attention.query is not None
        weight = attention.query.weight.copy()
        weight[:, HEADS // 2 :, :] *= 0.2
        attention = attention._replace(query=attention.query._replace(weight=weight))
    return Layer(
        self_norm=init_layer_norm(d),
        self_attention=init_multi_head(rng, d, HEADS),
        query_norm=init_layer_norm(d) if double else None,
        query_attention=start_alike(init_multi_head(rng, d, HEADS), 1.7) if double else None,
        norm=init_layer_norm(d),
        attention=attention,
        bias=init_box_mlp(rng, HEADS, hidden=HIDDEN, slopes=[0.0, 1.0, 2.0, 4.0]) if options.bias else None,
        feed_norm=init_layer_norm(d),
        feed=init_feed_forward(rng, d, options.feed_forward),
        box=init_update(rng, "box", d, hidden=d),
        score=init_linear(rng, d, 1)._replace(bias=np.asarray([-2.5], np.float32)),
    )


def detect(
    params: Detector, target: Any, query: Any, options: Any, attention: Callable[..., Any] = indirect_attention
) -> list[tuple[Any, Any]]:
    """Boxes (centre and size) and scores after each layer, from the backbone's features of both images."""
    xp = array_api_compat.array_namespace(target)
    where = {"dtype": target.dtype, "device": array_api_compat.device(target)}
    values = _memory(params, target, params.value_places, where)
    asked = _memory(params, query, params.key_places, where, blind=options.blind)
    boxes = xp.asarray(_start_boxes().tolist(), **where) + 0.0 * values[:, :1, :1]  # (B, M, 4)
    block = GRID // CELLS
    cells = xp.reshape(values, (-1, CELLS, block, CELLS, block, WIDTH))
    pooled = xp.reshape(xp.mean(cells, axis=(2, 4)), (-1, CELLS * CELLS, WIDTH))
    hidden = params.embedding + linear(params.query_content, pooled)
    places = linear(params.query_places, xp.asarray(_waves(CELLS).tolist(), **where))
    grid = pixel_centres(target, GRID)
    found = []
    for layer in params.layers:
        hidden, boxes, score = decode(
            layer, hidden, places, asked, values, detached(boxes), grid, options.model, attention
        )
        found.append((boxes, score))
    return found


def decode(
    layer: Layer,
    hidden: Any,
    places: Any,
    asked: Any,
    values: Any,
    boxes: Any,
    grid: Grid,
    model: str,
    attention: Callable[..., Any] = indirect_attention,
) -> tuple[Any, Any, Any]:
    """One decoder layer: hidden, refined boxes and scores. `attention` computes the attention to the target."""
    normed = layer_norm(layer.self_norm, hidden)
    hidden = hidden + multi_head_attention(layer.self_attention, normed + places, normed + places, normed)
    if layer.query_attention is not None:
        assert layer.query_norm is not None
        normed = layer_norm(layer.query_norm, hidden)
        hidden = hidden + multi_head_attention(layer.query_attention, normed, asked, asked)
    bias = None if layer.bias is None else _box_bias(layer.bias, corners(boxes), grid)
    keys = values if model == "double" else asked
    normed = layer_norm(layer.norm, hidden) + places
    hidden = hidden + multi_head_attention(layer.attention, normed, keys, values, bias=bias, attention=attention)
    hidden = hidden + feed_forward(layer.feed, layer_norm(layer.feed_norm, hidden))
    return hidden, box_update(layer.box, boxes, hidden), linear(layer.score, hidden)[..., 0]


def pixel_centres(like: Any, side: int) -> Grid:
    """The centres of a square grid of cells, as fractions of the side, in the dtype and place of an array."""
    xp = array_api_compat.array_namespace(like)
    lines = (xp.arange(side, dtype=like.dtype, device=array_api_compat.device(like)) + 0.5) / side
    return Grid(lines, lines)


def corners(boxes: Any) -> Any:
    """x0, y0, x1, y1 of boxes given by centre and size."""
    xp = array_api_compat.array_namespace(boxes)
    half = 0.5 * boxes[..., 2:]
    return xp.concat([boxes[..., :2] - half, boxes[..., :2] + half], axis=-1)


def _box_bias(f: BoxMLP, boxes: Any, grid: Grid) -> Any:
    """f of the offsets of the edges from the grid's lines, on a logarithmic scale, as in the published decoder."""
    found = box_offsets(boxes, grid)
    return f(BoxOffsets(_logarithmic(found.x), _logarithmic(found.y)))


def _logarithmic(offsets: Any) -> Any:
    xp = array_api_compat.array_namespace(offsets)
    return xp.log1p(relu(8.0 * offsets)) - xp.log1p(relu(-8.0 * offsets))


def _memory(params: Detector, features: Any, places: Linear, where: Any, blind: bool = False) -> Any:
    """(B, 144, d) of a target, or of a query whose grid is coarser."""
    xp = array_api_compat.array_namespace(features)
    size = features.shape[1]
    x = features + relu(group_norm(params.neck_norm, conv2d(params.neck, features)))
    if size != GRID:
        finer = xp.asarray(_interpolation(size).tolist(), **where)  # (GRID, size)
        x = xp.reshape(finer @ xp.reshape(x, (-1, size, size * WIDTH)), (-1, GRID, size, WIDTH))  # rows
        x = finer @ x  # columns
    x = xp.reshape(x, (-1, GRID * GRID, WIDTH))
    x = 0.0 * x if blind else x
    x = layer_norm(params.shared_norm, linear(params.shared, x))
    return x + linear(places, xp.asarray(_waves(GRID).tolist(), **where))


def _interpolation(size: int) -> np.ndarray:
    """Weights (GRID, size) of linear interpolation between the cells' centres."""
    at = np.clip((np.arange(GRID) + 0.5) * size / GRID - 0.5, 0.0, size - 1.0)
    return np.maximum(0.0, 1.0 - abs(at[:, None] - np.arange(size)))


def _waves(size: int) -> np.ndarray:
    """Sines and cosines of the columns and of the rows, (size^2, WIDTH)."""
    rates = 2.0 ** (np.arange(WIDTH // 4) / 2.0)
    angles = np.pi * np.arange(size)[:, None] / size * rates
    line = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    shape = (size, size, WIDTH // 2)
    both = [np.broadcast_to(line[None], shape), np.broadcast_to(line[:, None], shape)]
    return np.concatenate(both, axis=-1).reshape(size * size, WIDTH)


def _start_boxes() -> np.ndarray:
    """A box of START around the centre of each cell, (M, 4)."""
    line = (np.arange(CELLS) + 0.5) / CELLS
    x, y = np.tile(line, CELLS), np.repeat(line, CELLS)
    return np.stack([x, y, np.full_like(x, START), np.full_like(x, START)], axis=-1)
