"""Encoders that are trained once and then frozen."""

from __future__ import annotations

from typing import Any

from ._cache import Arrays, cached
from ._train import Problem, Recipe
from ._tree import leaves, mapped, rebuilt

__all__ = ["frozen_parameters"]


def frozen_parameters(name: str, problem: Problem, recipe: Recipe, trainer: Any) -> Any:
    """Parameters from the cache under a name, or trained and put there."""
    arrays = cached(name, lambda: _train(name, problem, recipe, trainer))
    return rebuilt(problem.params[0], iter([arrays[f"leaf{number:02d}"] for number in range(len(arrays))]))


def _train(name: str, problem: Problem, recipe: Recipe, trainer: Any) -> Arrays:
    params: Any = None
    for step, latest, losses in trainer.train(problem, recipe, [0], every=max(1, recipe.steps // 5)):
        params = latest
        print(f"{name}: step {step} of {recipe.steps}, loss {losses.mean():.3f}", flush=True)
    found = trainer.apply(lambda tree: tree, params)
    return {f"leaf{number:02d}": leaf for number, leaf in enumerate(leaves(mapped(lambda leaf: leaf[0], found)))}
