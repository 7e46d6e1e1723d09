"""Tiny problems of every experiment, from made-up data, and the bound within which two frameworks train alike."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments._train import Problem, Recipe, trainer
from experiments._tree import leaves, mapped

__all__ = ["check_same_losses", "draws_of", "tiny_problem"]

UNIT = 2.0**-53
DISTURBED = 3  # runs


def losses_of(framework: str, task: Problem, how: Recipe, draws: Any, disturb: int | None = None) -> np.ndarray:
    """Losses of every step in float64; disturbed, each parameter moves by a unit roundoff before every step."""
    import torch

    rng = np.random.default_rng(disturb)
    losses = []
    for _, params, loss in trainer(framework, "cpu", "float64").train(task, how, [0], every=1, draws=draws):
        losses.append(loss[0])
        if disturb is not None:
            for leaf in leaves(params):
                leaf.mul_(torch.as_tensor(1.0 + UNIT * rng.choice([-1.0, 1.0], tuple(leaf.shape))))
    return np.concatenate(losses)


def check_same_losses(task: Problem, how: Recipe, draws: Any, chain: int) -> None:
    """The two frameworks' losses differ by no more than their roundings can make of them.

    Each rounding of a step moves a gradient as a move of some parameter by a unit roundoff would, and training
    carries it on as it carries that. How it grows is measured, not bounded: runs whose parameters are disturbed by
    one unit roundoff at every step. The roundings of one step amount to at most `chain` such moves: the number of
    operations between a parameter and its gradient, times the square root of the terms in their sums.
    """
    base = losses_of("torch", task, how, draws)
    away = np.max([abs(losses_of("torch", task, how, draws, seed) - base) for seed in range(DISTURBED)], axis=0)
    bound = chain * (np.maximum.accumulate(away) + UNIT * abs(base))
    difference = abs(losses_of("jax", task, how, draws) - base)
    assert base[-1] != base[0]
    assert (difference <= bound).all(), f"{(difference / bound).max():.3g} of the bound"
    assert (bound < 1e-4 * base).all()  # a bound that would let a mistake through is none


def draws_of(task: Problem) -> Any:
    """The same uniform numbers for both frameworks."""

    def draws(step: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([7, step])
        return {name: rng.random((1, *shape)) for name, shape in task.draws.items()}

    return draws


def tiny_problem(name: str, patch: pytest.MonkeyPatch, steps: int) -> tuple[Problem, Recipe]:
    """A problem of speech, osod or retrieval with 64-bit parameters, random data and an encoder that is not trained."""
    from experiments import osod, retrieval, speech

    package = {"osod": osod, "retrieval": retrieval, "speech": speech}[name]
    run, make = package._run, {"osod": _osod, "retrieval": _retrieval, "speech": _speech}[name]
    data, encoder = make(np.random.default_rng(8))
    patch.setattr(run, "load", lambda draw, quick: data)
    patch.setattr(run, "frozen", lambda draw, data, trainer, quick: encoder)
    options = package.quick(package.VARIANTS["indirect"])._replace(steps=steps, batch=4)
    task = run.problem(options, [0], 0, SimpleNamespace())
    wide = [mapped(lambda leaf: leaf.astype(np.float64), tree) for tree in task.params]
    return task._replace(params=wide), run.recipe(options)


def _speech(rng: np.random.Generator) -> tuple[Any, Any]:
    from experiments.speech._data import FRAMES, MELS, PHONES
    from experiments.speech._encoder import init_encoder

    n, count = 12, rng.integers(6, 12, 12)
    onsets = np.sort(rng.uniform(0.0, 60.0, (n, PHONES)), axis=1)
    phones = np.where(np.arange(PHONES) < count[:, None], rng.integers(1, 9, (n, PHONES)), 0)
    data = {
        "vocabulary": np.arange(8),
        "train_mel": rng.integers(0, 80, (n, FRAMES, MELS)).astype(np.uint8),
        "train_phones": phones,
        "train_onsets": onsets,
        "train_ends": onsets + 2.0,
        "train_count": count,
        "train_length": rng.uniform(70.0, 120.0, n),
    }
    return data, init_encoder(0, 8)


def _osod(rng: np.random.Generator) -> tuple[Any, Any]:
    from experiments.osod._backbone import init_backbone

    n, low = 12, rng.uniform(0.0, 0.6, (12, 5, 2))
    data = {
        "characters": np.arange(6),
        "seen": np.arange(4),
        "train_scene": rng.integers(0, 255, (n, 48, 48)).astype(np.uint8),
        "train_box": np.concatenate([low, low + rng.uniform(0.2, 0.35, (n, 5, 2))], axis=-1),
        "train_label": rng.integers(0, 4, (n, 5)),
        "train_query": rng.integers(0, 255, (6, 12, 2, 24, 24)).astype(np.uint8),
    }
    return data, init_backbone(0, 4)


def _retrieval(rng: np.random.Generator) -> tuple[Any, Any]:
    from experiments.retrieval._encoder import init_encoder

    words = np.where(np.arange(10) < rng.integers(4, 10, 40)[:, None], rng.integers(1, 27, (40, 10)), 0)
    data = {
        "train_picture": rng.integers(0, 255, (12, 16, 144)).astype(np.uint8),
        "train_words": words,
        "train_word": rng.integers(0, 40, 12),
    }
    return data, init_encoder(0)
