"""Train a detector for some seeds, and measure AP50 and AP75 on seen and on unseen classes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import array_api_compat
import numpy as np

from ia_core import attention_weights, indirect_attention

from .._losses import take
from .._positions import detached
from .._train import Problem, Recipe, batches
from ._average_precision import average_precision, keep_best
from ._backbone import binary_cross_entropy, features, frozen
from ._data import SIDE, load, other_family
from ._model import CELLS, corners, detect, init_detector

__all__ = ["VARIANTS", "Options", "problem", "quick", "recipe", "run", "weight"]


class Options(NamedTuple):
    """Choices of one variant.

    Attributes
    ----------
    model : "indirect" (keys from the query image, values from the target) or "double" (cross-attention to the query
        image, then to the target)
    bias : whether attention to the target has the box bias f
    blind : whether the query image is zeroed
    position_heads : whether half of the heads start without content
    """

    model: str = "indirect"
    bias: bool = True
    blind: bool = False
    position_heads: bool = True
    feed_forward: int = 256
    steps: int = 1200
    batch: int = 32
    rate: float = 2e-3
    decay: float = 1e-2
    quick: bool = False


VARIANTS = {
    "indirect": Options(),
    "naive": Options(bias=False, position_heads=False),
    "double cross": Options("double", bias=False, position_heads=False, feed_forward=128),
    "double cross with the bias": Options("double", position_heads=False, feed_forward=128),
    "indirect, query zeroed": Options(blind=True),
    **{
        f"tuning: {name} for {steps} steps": options._replace(steps=steps)
        for name, options in (("indirect", Options()), ("naive", Options(bias=False, position_heads=False)))
        for steps in (800, 1200)
    },
}


def weight(options: Options) -> float:
    """About how long a seed trains."""
    return 200.0 * options.steps


def quick(options: Options) -> Options:
    """The same with little work."""
    return options._replace(steps=3, batch=8, quick=True)


def recipe(options: Options) -> Recipe:
    return Recipe(options.steps, options.batch, options.rate, options.decay)


def problem(options: Options, seeds: list[int], draw: int, trainer: Any) -> Problem:
    """What is trained: a scene, one of its classes, and an image of that class to ask with."""
    data = load(draw, quick=options.quick)
    backbone, how = frozen(draw, data, trainer, quick=options.quick), recipe(options)
    shared = {
        "data": {name: data[f"train_{name}"] for name in ("scene", "box", "label")},
        "query": data["train_query"].reshape(-1, *data["train_query"].shape[3:]),
        "backbone": backbone,
    }
    index = np.stack([_choices(seed, data, how) for seed in seeds], axis=1)  # (steps, S, batch, 3)
    params = [init_detector([seed, 43], backbone, options) for seed in seeds]
    return Problem(_loss_of(options), params, {}, shared, index, {})


def _choices(seed: int, data: Any, how: Recipe) -> np.ndarray:
    """Scene, wanted class, and number of the query image, for each place of each batch."""
    rng = np.random.default_rng([seed, 44])
    scenes = batches(seed, len(data["train_scene"]), how)
    labels = data["train_label"][scenes]  # (steps, batch, 5), -1 last
    which = (rng.random(scenes.shape) * (labels >= 0).sum(axis=-1)).astype(int)
    wanted = np.take_along_axis(labels, which[..., None], axis=-1)[..., 0]
    per_class = int(np.prod(data["train_query"].shape[1:3]))
    return np.stack([scenes, wanted, wanted * per_class + rng.integers(per_class, size=scenes.shape)], axis=-1)


def _loss_of(options: Options) -> Callable[..., Any]:
    def loss(params: Any, own: Any, shared: Any, index: Any, draws: Any) -> Any:
        xp = array_api_compat.array_namespace(index)
        batch = take(shared["data"], index[:, 0])
        target = features(shared["backbone"], batch["scene"])
        query = features(shared["backbone"], xp.take(shared["query"], index[:, 2], axis=0))
        here, boxes = _targets(batch["box"], batch["label"] == index[:, 1:2])
        count, total = xp.sum(here), 0.0
        for found, score in detect(params, target, query, options):
            chance = 1.0 / (1.0 + xp.exp(-xp.clip(score, -30.0, 30.0)))
            missed = xp.abs(here - chance)  # what has been learned counts little: focal loss, exponent 1
            by_class = xp.sum(detached(missed) * binary_cross_entropy(score, here)) / count
            edges = corners(found)
            off = 5.0 * xp.sum(xp.abs(edges - boxes), axis=-1) + 2.0 * (1.0 - generalised_iou(edges, boxes))
            total = total + by_class + 0.5 * xp.sum(here * off) / count
        return total

    return loss


def _targets(boxes: Any, wanted: Any) -> tuple[Any, Any]:
    """Which cell (B, M) holds the centre of a wanted object, and that object's box (B, M, 4)."""
    xp = array_api_compat.array_namespace(boxes)
    cell = xp.clip(xp.floor(0.5 * (boxes[..., :2] + boxes[..., 2:]) * CELLS), 0.0, CELLS - 1.0)
    number = cell[..., 1] * CELLS + cell[..., 0]  # (B, 5)
    cells = xp.arange(CELLS * CELLS, dtype=boxes.dtype, device=array_api_compat.device(boxes))
    inside = xp.astype((number[..., None] == cells) & wanted[..., None], boxes.dtype)  # (B, 5, M)
    count = xp.sum(inside, axis=1)
    mean = xp.sum(inside[..., None] * boxes[:, :, None, :], axis=1) / xp.where(count > 0.0, count, 1.0)[..., None]
    return xp.astype(count > 0.0, boxes.dtype), mean


def generalised_iou(one: Any, other: Any) -> Any:
    """Intersection over union, less the empty share of the smallest box around both (arXiv 1902.09630)."""
    xp = array_api_compat.array_namespace(one)

    def area(low: Any, high: Any) -> Any:
        sides = xp.where(high > low, high - low, 0.0)
        return sides[..., 0] * sides[..., 1]

    low, high = xp.maximum(one[..., :2], other[..., :2]), xp.minimum(one[..., 2:], other[..., 2:])
    shared = area(low, high)
    union = area(one[..., :2], one[..., 2:]) + area(other[..., :2], other[..., 2:]) - shared + 1e-7
    low, high = xp.minimum(one[..., :2], other[..., :2]), xp.maximum(one[..., 2:], other[..., 2:])
    around = area(low, high) + 1e-7
    return shared / union - (around - union) / around


def run(
    options: Options, seeds: list[int], trainer: Any, draw: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Train and test; one record of results for each seed."""
    data = load(draw, quick=options.quick)
    backbone, how = frozen(draw, data, trainer, quick=options.quick), recipe(options)
    curve: list[Any] = []
    params: Any = None
    task = problem(options, seeds, draw, trainer)
    for step, latest, losses in trainer.train(task, how, seeds, every=max(1, how.steps // 8)):
        params = latest
        curve.append([step, losses.mean(axis=1)])
        say(f"step {step} of {how.steps}, loss {losses.mean():.3f}")
    tests = {part: evaluate(options, params, data, backbone, trainer, part) for part in ("seen", "unseen")}
    examples = _examples(options, params, data, backbone, trainer)
    return [
        {
            **{part: results[number] for part, results in tests.items()},
            **({"examples": examples} if seeds[number] == 0 and options.model == "indirect" else {}),
            "curve": [[step, round(float(values[number]), 4)] for step, values in curve],
        }
        for number in range(len(seeds))
    ]


@functools.cache
def predictor(options: Options) -> Callable[..., Any]:
    """Corners (B, M, 4) and scores (B, M) of the last layer."""

    def predict(params: Any, scene: Any, query: Any, backbone: Any) -> Any:
        found, score = detect(params, features(backbone, scene), features(backbone, query), options)[-1]
        return corners(found), score

    return predict


@functools.cache
def watched(options: Options) -> Callable[..., Any]:
    """What the predictor gives, and the last layer's attention to the target's cells, (B, H, M, 144)."""

    def predict(params: Any, scene: Any, query: Any, backbone: Any) -> Any:
        seen: list[Any] = []

        def attention(query: Any, key: Any, value: Any, **how: Any) -> Any:
            seen.append(attention_weights(query, key, **how))
            return indirect_attention(query, key, value, **how)

        target, asked = features(backbone, scene), features(backbone, query)
        found, score = detect(params, target, asked, options, attention)[-1]
        return corners(found), score, seen[-1]

    return predict


def _examples(options: Options, params: Any, data: Any, backbone: Any, trainer: Any, count: int = 6) -> list[Any]:
    """Of the first seed, for the first questions on unseen classes: detections, and where the best one looked."""
    asked = questions(data, "unseen")[:count]
    queries = data["test_query"].reshape(-1, *data["test_query"].shape[3:])
    images = (data["unseen_scene"][asked[:, 0]], queries[asked[:, 2]], backbone)
    boxes, scores, looked = (part[0] for part in trainer.apply(watched(options), params, shared=images))
    found = []
    for number, (scene, kind, query) in enumerate(asked.tolist()):
        kept = keep_best(boxes[number], scores[number])
        chances = 1.0 / (1.0 + np.exp(-scores[number]))
        found.append(
            {
                "scene": scene,
                "class": kind,
                "query": query,
                "boxes": [[round(float(part), 3) for part in (*boxes[number, one], chances[one])] for one in kept],
                "attention": np.round(1000.0 * looked[number, :, kept[0]].mean(axis=0)).astype(int).tolist(),
            }
        )
    return found


def questions(data: Any, part: str) -> np.ndarray:
    """Scene, class and number of the query image, for each class of each scene: another typeface family than there."""
    rng = np.random.default_rng(45)
    rows, size = [], data["test_query"].shape
    for scene, (labels, faces) in enumerate(zip(data[f"{part}_label"], data[f"{part}_face"], strict=True)):
        for kind in sorted(set(labels[labels >= 0].tolist())):
            allowed = other_family(set(faces[labels == kind].tolist()))
            face, k = allowed[rng.integers(len(allowed))], int(rng.integers(size[2]))
            rows.append((scene, kind, int(np.ravel_multi_index((kind, face, k), size[:3]))))
    return np.asarray(rows)


def evaluate(
    options: Options, params: Any, data: Any, backbone: Any, trainer: Any, part: str
) -> list[dict[str, float]]:
    """Average precision of each seed on a test set."""
    asked = questions(data, part)
    queries = data["test_query"].reshape(-1, *data["test_query"].shape[3:])
    boxes, scores, size = [], [], 200
    rows = np.concatenate([asked, np.repeat(asked[:1], -len(asked) % size, axis=0)])  # whole batches compile once
    for at in range(0, len(rows), size):
        some = rows[at : at + size]
        images = (data[f"{part}_scene"][some[:, 0]], queries[some[:, 2]], backbone)
        one, other = trainer.apply(predictor(options), params, shared=images)
        boxes.append(one)
        scores.append(other)
    boxes, scores = (np.concatenate(found, axis=1)[:, : len(asked)] for found in (boxes, scores))
    truth = [
        (scene, kind, box)
        for scene, kind, _ in asked.tolist()
        for box, label in zip(data[f"{part}_box"][scene], data[f"{part}_label"][scene], strict=True)
        if label == kind
    ]
    return [average_precision(truth, _kept(asked, boxes[seed], scores[seed]), SIDE) for seed in range(len(boxes))]


def _kept(asked: np.ndarray, boxes: np.ndarray, scores: np.ndarray) -> list[Any]:
    """Detections (scene, class, box, score) after suppression."""
    return [
        (scene, kind, boxes[number, best], float(scores[number, best]))
        for number, (scene, kind, _) in enumerate(asked.tolist())
        for best in keep_best(boxes[number], scores[number])
    ]
