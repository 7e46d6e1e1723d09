"""PyTorch and JAX train alike: the same losses from the same parameters on the same batches, for 50 steps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from experiments._train import Recipe, rates
from experiments.synthetic import VARIANTS
from experiments.synthetic import quick as little
from experiments.synthetic._run import problem, recipe

from .experiment_cases import check_same_losses, draws_of, tiny_problem

pytest.importorskip("torch")
pytest.importorskip("optax")
jax = pytest.importorskip("jax")

# Operations between a parameter and its gradient, there and back: some 10 in each of 2 layers; sums of up to 100 terms.
SYNTHETIC = 2 * 2 * 10 * 10
# The same behind 5 convolutions, each with a norm, and a frozen encoder; sums of up to 5 * 64 terms, 18 as a root.
CONVOLUTIONS = 2 * (2 * 10 + 5 * 4) * 18


@pytest.fixture
def in_64_bits() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    "variant", ["sorting: indirect", pytest.param("retrieval: query-run cross", marks=pytest.mark.slow)]
)
def test_synthetic_trains_alike(variant: str, in_64_bits: None) -> None:
    options = little(VARIANTS[variant])._replace(width=8, feed_forward=16, batch=10, epochs=5, bias_hidden=4)
    task, how = problem(options, [0], "float64"), recipe(options)
    assert how.steps == 50
    check_same_losses(task, how, draws_of(task), SYNTHETIC)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["osod", "speech", "retrieval"])
def test_the_others_train_alike(name: str, in_64_bits: None, monkeypatch: pytest.MonkeyPatch) -> None:
    task, how = tiny_problem(name, monkeypatch, steps=50)
    check_same_losses(task, how, draws_of(task), CONVOLUTIONS)


def test_rates_rise_and_fall() -> None:
    table = rates(Recipe(steps=100, batch=1, rate=2.0, decay=0.0))
    assert table[0] == pytest.approx(0.2)
    assert table.argmax() == 9
    assert (np.diff(table[9:]) < 0).all()
    assert 0 < table[-1] < 1e-3
