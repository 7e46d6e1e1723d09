"""Train a variant for some seeds, and measure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .._train import Problem, Recipe, batches
from .._tree import leaves, mapped
from ._model import draw_shapes, init, logits_of, loss_of, make_data
from ._noise import FRACTIONS, SIGMAS, first_layer_snr, noisy_logits, permutations, value_scale
from ._variants import Options

__all__ = ["problem", "quick", "recipe", "run", "weight"]

PAPER_TEST = 200  # instances that the paper tests on; ours are ten times as many


def weight(options: Options) -> float:
    """About how long a seed trains, to start the longest first."""
    return options.epochs * options.instances * (1.4 if options.self_attention else 1.0)


def quick(options: Options) -> Options:
    """The same with little work: to see that all of it runs."""
    return options._replace(instances=100, epochs=2, layers=2, width=32, feed_forward=32, test=100, curve_points=2)


def recipe(options: Options) -> Recipe:
    steps = options.epochs * (options.instances // options.batch)
    return Recipe(steps, options.batch, options.rate, options.decay)


def problem(options: Options, seeds: list[int], dtype: str = "float32") -> Problem:
    """What is trained, for a stack of seeds; a seed changes data, orderings, order of batches and parameters."""
    data = [make_data(options, seed, options.instances, part=0) for seed in seeds]
    return Problem(
        loss_of(options),
        [init(options, seed, dtype) for seed in seeds],
        {name: np.stack([one[name] for one in data]) for name in data[0]},
        {},
        np.stack([batches(seed, options.instances, recipe(options)) for seed in seeds], axis=1),
        draw_shapes(options),
    )


def run(
    options: Options, seeds: list[int], trainer: Any, draw: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Train and test; one record of results for each seed. There is no draw of data besides the seed's."""
    test = [make_data(options, seed, options.test, part=1) for seed in seeds]
    x, y, target = (np.stack([one[name] for one in test]) for name in "xyt")
    logits, how = logits_of(options), recipe(options)
    curves: list[list[Any]] = [[] for _ in seeds]
    training = trainer.train(problem(options, seeds), how, seeds, every=max(1, how.steps // options.curve_points))
    params: Any = None
    for step, params, losses in training:
        right = trainer.apply(logits, params, x, y).argmax(-1) == target
        for seed, curve in enumerate(curves):
            curve.append([step, _short(right[seed].mean()), _short(losses[seed].mean())])
        say(f"step {step} of {how.steps}, loss {losses.mean():.3f}, accuracy {right.mean():.3f}")
    records = [
        {
            "accuracy": _short(right[seed].mean()),
            "accuracy_200": _short(right[seed][:PAPER_TEST].mean()),
            "curve": curves[seed],
            "parameters": sum(leaf[0].numel() if hasattr(leaf, "numel") else leaf[0].size for leaf in leaves(params)),
        }
        for seed in range(len(seeds))
    ]
    if options.noise:
        _add_noise(records, options, seeds, trainer, params, (x, y, target))
    return records


def _add_noise(
    records: list[dict[str, Any]], options: Options, seeds: list[int], trainer: Any, params: Any, test: tuple[Any, ...]
) -> None:
    """Accuracy by sigma and by the fraction of values that moved, and the first layer's SNR at sigma = 1."""
    x, y, target = (part[:, :1000] for part in test)
    values = (x if options.model in ("cross", "query-run") else y).shape[-1]
    rngs = [np.random.default_rng([seed, 5]) for seed in seeds]
    plain = mapped(lambda leaf: np.asarray(leaf.cpu() if hasattr(leaf, "cpu") else leaf), params)
    scales = [value_scale(mapped(lambda leaf, seed=seed: leaf[seed], plain), options) for seed in range(len(seeds))]
    shape = (x.shape[1], values, options.width)
    unit = np.stack(
        [scale * rng.standard_normal(shape, dtype=np.float32) for scale, rng in zip(scales, rngs, strict=True)]
    )
    still = np.stack([permutations(rng, x.shape[1], values, 0.0) for rng in rngs])
    noisy = noisy_logits(options)

    def accuracy(eps: np.ndarray, perm: np.ndarray) -> np.ndarray:
        right = trainer.apply(noisy, params, x, y, eps, perm).argmax(-1) == target
        return right.reshape(len(seeds), -1).mean(axis=1)

    by_sigma = [accuracy(np.float32(sigma) * unit, still) for sigma in SIGMAS]
    moved = [np.stack([permutations(rng, x.shape[1], values, part) for rng in rngs]) for part in FRACTIONS]
    by_fraction = [accuracy(0.0 * unit, perm) for perm in moved]
    snr = trainer.apply(first_layer_snr(options), params, x, y, unit, still)
    for seed, record in enumerate(records):
        record["noise"] = {
            "sigma": [[sigma, _short(row[seed])] for sigma, row in zip(SIGMAS, by_sigma, strict=True)],
            "moved": [[part, _short(row[seed])] for part, row in zip(FRACTIONS, by_fraction, strict=True)],
            "first_layer_snr": _short(snr[seed]),
            "value_scale": _short(scales[seed]),
        }


def _short(number: Any) -> float:
    return round(float(number), 5)
