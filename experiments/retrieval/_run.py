"""Train a scorer for some seeds, and measure how often the right word comes first among 200, at each gap."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import array_api_compat
import numpy as np

from .._losses import cross_entropy
from .._train import Problem, Recipe, batches
from ._data import GAPS, LETTERS, load
from ._encoder import frozen, see
from ._model import embed_pictures, embed_words, init_dual, init_scorer, score

__all__ = ["VARIANTS", "Options", "problem", "quick", "recipe", "run", "weight"]

NEGATIVES, ROLLS, NEIGHBOURS = 9, 4, 24  # wrong words and wrong pictures for each pair; similar words to choose from
NEVER = -1e4


class Options(NamedTuple):
    """Choices of one variant.

    Attributes
    ----------
    model : "indirect" (values from the word), "cross" (values from the picture) or "dual" (no attention)
    bias : whether attention has the bias f of the segments
    """

    model: str = "indirect"
    bias: bool = True
    steps: int = 300
    batch: int = 20
    rate: float = 2e-3
    decay: float = 1e-2
    quick: bool = False


VARIANTS = {
    "indirect": Options(),
    "naive": Options(bias=False),
    "cross": Options("cross", bias=False),
    "cross with the bias": Options("cross"),
    "dual encoder": Options("dual", batch=160),
}


def weight(options: Options) -> float:
    """About how long a seed trains."""
    return (30.0 if options.model == "dual" else 150.0) * options.steps


def quick(options: Options) -> Options:
    """The same with little work."""
    return options._replace(steps=3, batch=8, quick=True)


def recipe(options: Options) -> Recipe:
    return Recipe(options.steps, options.batch, options.rate, options.decay)


def problem(options: Options, seeds: list[int], draw: int, trainer: Any) -> Problem:
    """What is trained: every picture against its word and wrong ones, every word against its picture and wrong ones."""
    data = load(draw, quick=options.quick)
    encoder, how = frozen(draw, data, trainer, quick=options.quick), recipe(options)
    index = np.stack([_candidates(seed, data, how) for seed in seeds], axis=1)  # (steps, S, batch, 2 + NEGATIVES)
    loss = _dual_loss if options.model == "dual" else _pair_loss(options)
    shared = {"picture": data["train_picture"], "words": data["train_words"], "encoder": encoder}
    start = (
        (lambda seed: init_dual(seed, encoder))
        if options.model == "dual"
        else (lambda seed: init_scorer(seed, encoder, bias=options.bias))
    )
    return Problem(loss, [start([seed, 32]) for seed in seeds], {}, shared, index, {})


def _candidates(seed: int, data: Any, how: Recipe) -> np.ndarray:
    """For each place of each batch: the picture, its word, and wrong words, half of them similar ones."""
    rng = np.random.default_rng([seed, 33])
    pictures = batches(seed, len(data["train_picture"]), how)  # (steps, batch)
    right, similar = data["train_word"][pictures], _similar(data["train_words"])
    half = NEGATIVES // 2
    near = similar[right[..., None], rng.integers(similar.shape[1], size=(*right.shape, half))]
    far = rng.integers(len(data["train_words"]), size=(*right.shape, NEGATIVES - half))
    return np.concatenate([pictures[..., None], right[..., None], near, far], axis=-1)


def _similar(words: np.ndarray) -> np.ndarray:
    """For each word the NEIGHBOURS that share most letters at the same place."""
    hot = (words[:, :, None] == np.arange(27)).reshape(len(words), -1).astype(np.float32)
    shared = hot @ hot.T
    np.fill_diagonal(shared, -1.0)
    return np.argsort(-shared, axis=1, kind="stable")[:, :NEIGHBOURS]


def _pair_loss(options: Options) -> Callable[..., Any]:
    def loss(params: Any, own: Any, shared: Any, index: Any, draws: Any) -> Any:
        xp = array_api_compat.array_namespace(index)
        features, words = _batch(shared, index)
        batch, choices = index.shape[0], NEGATIVES + 1
        columns = xp.concat([features] * choices, axis=0)  # (choices * batch, ...)
        stacked = xp.concat([words[:, number, :] for number in range(choices)], axis=0)
        forward = xp.reshape(score(params, columns, stacked, options), (choices, batch)).T
        rolled = xp.concat([xp.roll(features, turn, axis=0) for turn in range(1, ROLLS + 1)], axis=0)
        again = xp.concat([words[:, 0, :]] * ROLLS, axis=0)
        backward = xp.reshape(score(params, rolled, again, options), (ROLLS, batch)).T
        right = index[:, 1]
        same = xp.stack([xp.roll(right, turn) == right for turn in range(1, ROLLS + 1)], axis=1)
        return _two_ways(forward, index, xp.where(same, NEVER, backward))

    return loss


def _dual_loss(params: Any, own: Any, shared: Any, index: Any, draws: Any) -> Any:
    xp = array_api_compat.array_namespace(index)
    features, words = _batch(shared, index)
    pictures = embed_pictures(params, features)  # (B, d)
    texts = embed_words(params, xp.reshape(words, (-1, LETTERS)))
    texts = xp.reshape(texts, (*words.shape[:2], -1))  # (B, choices, d)
    gain = xp.exp(params.temperature)
    forward = gain * xp.sum(pictures[:, None, :] * texts, axis=-1)
    turns = range(1, min(index.shape[0], 1 + 8 * ROLLS))
    backward = gain * xp.stack(
        [xp.sum(xp.roll(pictures, turn, axis=0) * texts[:, 0, :], axis=-1) for turn in turns], axis=1
    )
    right = index[:, 1]
    same = xp.stack([xp.roll(right, turn) == right for turn in turns], axis=1)
    return _two_ways(forward, index, xp.where(same, NEVER, backward))


def _batch(shared: Any, index: Any) -> tuple[Any, Any]:
    """Features (B, 36, d) of the pictures and letters (B, choices, 10) of the words."""
    xp = array_api_compat.array_namespace(index)
    features = see(shared["encoder"], xp.take(shared["picture"], index[:, 0], axis=0))
    flat = xp.take(shared["words"], xp.reshape(index[:, 1:], (-1,)), axis=0)
    return features, xp.reshape(flat, (index.shape[0], NEGATIVES + 1, LETTERS))


def _two_ways(forward: Any, index: Any, backward: Any) -> Any:
    """Cross-entropy of the right word among words, and of the right picture among pictures."""
    xp = array_api_compat.array_namespace(forward)
    wrong = xp.where(index[:, 2:] == index[:, 1:2], NEVER, forward[:, 1:])  # the right word, drawn as a wrong one
    first = xp.zeros_like(index[:, 0])
    by_word = cross_entropy(xp.concat([forward[:, :1], wrong], axis=1), first)
    return by_word + cross_entropy(xp.concat([forward[:, :1], backward], axis=1), first)


def run(
    options: Options, seeds: list[int], trainer: Any, draw: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Train and test; one record of results for each seed."""
    data = load(draw, quick=options.quick)
    encoder, how = frozen(draw, data, trainer, quick=options.quick), recipe(options)
    curve: list[Any] = []
    params: Any = None
    task = problem(options, seeds, draw, trainer)
    for step, latest, losses in trainer.train(task, how, seeds, every=max(1, how.steps // 6)):
        params = latest
        curve.append([step, losses.mean(axis=1)])
        say(f"step {step} of {how.steps}, loss {losses.mean():.3f}")
    tables = {gap: _scores(options, params, data, encoder, trainer, gap) for gap in GAPS}
    return [
        {
            "recall": {str(gap): _recall(table[number]) for gap, table in tables.items()},
            "curve": [[step, round(float(values[number]), 4)] for step, values in curve],
        }
        for number in range(len(seeds))
    ]


def all_pairs(params: Any, pictures: Any, words: Any, encoder: Any) -> Any:
    """Scores of the dual encoder, (pictures, words)."""
    return embed_pictures(params, see(encoder, pictures)) @ embed_words(params, words).T


@functools.cache
def pair_scores(options: Options) -> Callable[..., Any]:
    """Scores (pictures, words) of a model of pairs."""

    def of_some(params: Any, pictures: Any, words: Any, encoder: Any) -> Any:
        xp = array_api_compat.array_namespace(words)
        features, count = see(encoder, pictures), words.shape[0]
        columns = xp.reshape(xp.stack([features] * count, axis=1), (-1, *features.shape[1:]))
        stacked = xp.concat([words] * features.shape[0], axis=0)
        return xp.reshape(score(params, columns, stacked, options), (-1, count))

    return of_some


def _scores(options: Options, params: Any, data: Any, encoder: Any, trainer: Any, gap: int) -> np.ndarray:
    """Scores (S, pictures, words) of all test pictures and words."""
    pictures, words = data[f"test_picture{gap}"], data["test_words"]
    if options.model == "dual":
        return trainer.apply(all_pairs, params, shared=(pictures, words, encoder))
    size = 10
    parts = [
        trainer.apply(pair_scores(options), params, shared=(pictures[at : at + size], words, encoder))
        for at in range(0, len(pictures), size)
    ]
    return np.concatenate(parts, axis=1)


def _recall(table: np.ndarray) -> dict[str, float]:
    """Percent of pictures whose word, and of words whose picture, comes first, and among the first five."""
    own = np.diagonal(table)
    by_picture, by_word = (table > own[:, None]).sum(axis=1), (table > own[None, :]).sum(axis=0)
    return {
        f"{name}_at_{rank}": round(100.0 * float((places < rank).mean()), 2)
        for name, places in (("word", by_picture), ("picture", by_word))
        for rank in (1, 5)
    }
