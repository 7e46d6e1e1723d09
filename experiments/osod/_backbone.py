"""The backbone: features that tell seen characters apart, trained once for a draw of data and then frozen.

==================  =====================  ======================================================
array               shape                  meaning
==================  =====================  ======================================================
image               (B, s, s)              uint8, s = 48 or 24
features            (B, s/4, s/4, 64)
==================  =====================  ======================================================
"""

from __future__ import annotations

from typing import Any, NamedTuple

import array_api_compat
import numpy as np

from ia_core import LayerNorm, Linear, init_layer_norm, init_linear, linear

from .._cache import Arrays
from .._convolution import conv2d, group_norm, init_conv, relu
from .._frozen import frozen_parameters
from .._losses import surprise
from .._train import Problem, Recipe, batches
from ._data import SIDE

__all__ = ["GRID", "WIDTH", "Backbone", "features", "frozen"]

WIDTH, GRID = 64, SIDE // 4


class Backbone(NamedTuple):
    """Two convolutions of stride 2, residual ones, and the heads of its own training."""

    first: Linear
    first_norm: LayerNorm
    second: Linear
    second_norm: LayerNorm
    convolutions: tuple[Linear, ...]
    norms: tuple[LayerNorm, ...]
    embed: Linear
    prototypes: Any
    objectness: Linear


def features(params: Backbone, image: Any) -> Any:
    """(B, s, s) uint8 to (B, s/4, s/4, WIDTH)."""
    xp = array_api_compat.array_namespace(image)
    x = 3.0 * (xp.astype(image, params.first.weight.dtype) / 255.0 - 0.5)[..., None]
    return _residual(params, x)


def _residual(params: Backbone, x: Any) -> Any:
    x = relu(group_norm(params.first_norm, conv2d(params.first, x, stride=2)))
    x = relu(group_norm(params.second_norm, conv2d(params.second, x, stride=2)))
    for convolution, norm in zip(params.convolutions, params.norms, strict=True):
        x = x + relu(group_norm(norm, conv2d(convolution, x)))
    return x


def init_backbone(seed: Any, classes: int) -> Backbone:
    """Random parameters."""
    rng, d = np.random.default_rng(seed), WIDTH
    return Backbone(
        init_conv(rng, 9, 1, 32),
        init_layer_norm(32),
        init_conv(rng, 9, 32, d),
        init_layer_norm(d),
        tuple(init_conv(rng, 9, d, d) for _ in range(3)),
        tuple(init_layer_norm(d) for _ in range(3)),
        init_linear(rng, d, d),
        rng.standard_normal((classes, d)).astype(np.float32),
        init_linear(rng, d, 1),
    )


def frozen(draw: int, data: Arrays, trainer: Any, *, quick: bool) -> Backbone:
    """The backbone of a draw; trained if it is not in the cache."""
    recipe = Recipe(10 if quick else 1500, 48, 2e-3, 1e-2)
    rank = np.full(len(data["characters"]) + 1, -1)
    rank[data["seen"]] = np.arange(len(data["seen"]))
    rng = np.random.default_rng([draw, 41])
    scene = batches(0, len(data["train_scene"]), recipe)  # (steps, batch)
    query = np.ravel_multi_index(
        (
            data["seen"][rng.integers(len(data["seen"]), size=scene.shape)],
            *(rng.integers(size, size=scene.shape) for size in data["train_query"].shape[1:3]),
        ),
        data["train_query"].shape[:3],
    )
    per_class = int(np.prod(data["train_query"].shape[1:3]))
    shared = {
        "scene": data["train_scene"],
        "box": data["train_box"],
        "label": rank[data["train_label"]],
        "query": data["train_query"].reshape(-1, *data["train_query"].shape[3:]),
        "query_label": np.repeat(rank[:-1], per_class),
    }
    index = np.stack([scene, query], axis=-1)[:, None]
    start = init_backbone([draw, 42], len(data["seen"]))
    problem = Problem(_loss, [start], {}, shared, index, {"sign": (recipe.batch,)})
    return frozen_parameters(f"osod-backbone{'-quick' if quick else ''}{draw}", problem, recipe, trainer)


def _loss(params: Backbone, own: Any, shared: Any, index: Any, draws: Any) -> Any:
    """Class at the centre of each object and of each query, and whether an object's centre is near each cell."""
    xp = array_api_compat.array_namespace(index)
    take = {name: shared[name] for name in ("scene", "box", "label")}
    scene, box, label = (xp.take(rows, index[:, 0], axis=0) for rows in take.values())
    query, query_label = (xp.take(shared[name], index[:, 1], axis=0) for name in ("query", "query_label"))
    sign = xp.where(draws["sign"] < 0.5, -3.0, 3.0)[:, None, None]  # light on dark as often as dark on light
    dtype = params.first.weight.dtype
    there, asked = (
        _residual(params, (sign * (xp.astype(image, dtype) / 255.0 - 0.5))[..., None]) for image in (scene, query)
    )
    centres = 0.5 * (box[..., :2] + box[..., 2:])  # (B, 5, 2)
    at = _sampled(there, centres)  # (B, 5, d)
    middle = _sampled(asked, 0.5 + 0.0 * centres[:, :1, :])
    found = xp.concat([at, middle], axis=1)
    wanted = xp.concat([label, query_label[:, None]], axis=1)  # (B, 6), -1 where there is no object
    real = xp.astype(wanted >= 0, dtype)
    logits = 16.0 * _unit(linear(params.embed, found)) @ _unit(params.prototypes).T
    by_class = xp.sum(real * surprise(logits, xp.where(wanted < 0, 0, wanted))) / xp.sum(real)
    lines = (xp.arange(GRID, dtype=dtype, device=array_api_compat.device(found)) + 0.5) / GRID
    near = xp.abs(centres[..., None] - lines) < 1.2 / GRID  # (B, 5, 2, GRID)
    cells = near[:, :, 1, :, None] & near[:, :, 0, None, :] & (label >= 0)[:, :, None, None]
    target = xp.astype(xp.any(cells, axis=1), dtype)
    score = linear(params.objectness, there)[..., 0]
    return by_class + xp.mean(binary_cross_entropy(score, target))


def _sampled(grid: Any, centres: Any) -> Any:
    """Features (B, n, d) at centres (B, n, 2) in [0, 1], linear between cells."""
    xp = array_api_compat.array_namespace(grid)
    size = grid.shape[1]
    places = xp.clip(centres * size - 0.5, 0.0, size - 1.0)
    cells = xp.arange(size, dtype=grid.dtype, device=array_api_compat.device(grid))
    weights = relu(1.0 - xp.abs(places[..., None] - cells))  # (B, n, 2, size)
    both = weights[:, :, 1, :, None] * weights[:, :, 0, None, :]
    flat = xp.reshape(both, (*both.shape[:2], size * size))
    return flat @ xp.reshape(grid, (grid.shape[0], size * size, grid.shape[-1]))


def binary_cross_entropy(logits: Any, target: Any) -> Any:
    """-log of the probability that sigmoid(logits) gives to the target (0 or 1), entry by entry."""
    xp = array_api_compat.array_namespace(logits)
    return relu(logits) - logits * target + xp.log1p(xp.exp(-xp.abs(logits)))


def _unit(x: Any) -> Any:
    xp = array_api_compat.array_namespace(x)
    return x / xp.sqrt(xp.sum(x * x, axis=-1, keepdims=True) + 1e-12)
