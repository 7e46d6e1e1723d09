"""Training of ia_core's functions: one recipe and one loop, under PyTorch and under JAX.

Several seeds train at once: a trainer maps the loss over a leading axis of seeds, S, of everything that a seed
changes. On one processor core S = 1 is as good; on a GPU, whose time goes into starting small kernels, ten seeds
cost little more than one.

==================  =====================  ======================================================
array               shape                  meaning
==================  =====================  ======================================================
parameters          (S, ...) each          stacked trees
own data            (S, n, ...) each       what every seed draws for itself
shared data         (n, ...) each          what all seeds read
index               (steps, S, batch)      which rows of the data make a batch
draws               (S, ...) each          uniform numbers in [0, 1) of one step: dropout, noise
losses              (S, steps)
==================  =====================  ======================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Problem", "Recipe", "batches", "rates", "trainer"]


class Recipe(NamedTuple):
    """AdamW with clipping; the rate rises linearly and falls as a cosine."""

    steps: int
    batch: int
    rate: float
    decay: float
    warmup: float = 0.1
    clip: float = 1.0


class Problem(NamedTuple):
    """What is trained.

    Attributes
    ----------
    loss : callable
        ``loss(params, own, shared, index, draws)`` of one seed, in array API calls: a number.
    params : list of trees of NumPy arrays, one per seed
    own : tree of NumPy arrays (S, n, ...)
    shared : tree of NumPy arrays (n, ...)
    index : integer array (steps, S, batch)
    draws : dict of shapes
        Uniform numbers that a step needs, by name.
    """

    loss: Callable[..., Any]
    params: list[Any]
    own: Any
    shared: Any
    index: Any
    draws: dict[str, tuple[int, ...]]


def rates(recipe: Recipe) -> np.ndarray:
    """Learning rate of every step: linear from 0 over the warm-up, and times a cosine from 1 to 0."""
    step = np.arange(recipe.steps)
    rise = np.minimum(1.0, (step + 1) / max(1.0, recipe.warmup * recipe.steps))
    return recipe.rate * rise * 0.5 * (1.0 + np.cos(math.pi * step / recipe.steps))


def batches(seed: int, rows: int, recipe: Recipe) -> np.ndarray:
    """Rows of every batch of one seed, (steps, batch): each pass is a new permutation, its rest is left out."""
    rng = np.random.default_rng([seed, 1])
    per_pass = rows // recipe.batch
    passes = -(-recipe.steps // per_pass)
    order = np.stack([rng.permutation(rows)[: per_pass * recipe.batch] for _ in range(passes)])
    return order.reshape(passes * per_pass, recipe.batch)[: recipe.steps]


def trainer(framework: str, device: str = "cpu", dtype: str = "float32") -> Any:
    """The trainer of a framework; importing it is all that needs the framework."""
    if framework == "torch":
        from ._train_torch import TorchTrainer

        return TorchTrainer(device, dtype)
    if framework == "jax":
        from ._train_jax import JaxTrainer

        return JaxTrainer(device, dtype)
    raise ValueError(f"`framework` must be torch or jax; got {framework!r}")
