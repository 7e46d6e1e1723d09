"""The experiments on tiny settings: they run, go on where they were stopped, and train alike under both frameworks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import _cli, _registry
from experiments._train import Problem, Recipe, rates, trainer
from experiments._tree import leaves
from experiments.synthetic import VARIANTS
from experiments.synthetic import quick as little
from experiments.synthetic._run import problem, recipe

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")

UNIT = 2.0**-53
# Longest chain of roundings between a parameter and its gradient: two layers, each with projection, scores,
# softmax, weighted sum, projection, two norms and a network, some 10 operations on the way out and as many back,
# every sum over up to 100 terms in some order, which errs by no more than sqrt(100) roundings that are independent.
CHAIN = 2 * 2 * 10 * 10


@pytest.fixture
def in_64_bits() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def losses_of(framework: str, task: Problem, how: Recipe, draws: Any, disturb: int | None = None) -> np.ndarray:
    """Losses of every step in float64; disturbed, each parameter moves by a unit roundoff before every step."""
    rng = np.random.default_rng(disturb)
    losses = []
    training = trainer(framework, "cpu", "float64").train(task, how, [0], every=1, draws=draws)
    for _, params, loss in training:
        losses.append(loss[0])
        if disturb is not None:
            for leaf in leaves(params):
                leaf.mul_(torch.as_tensor(1.0 + UNIT * rng.choice([-1.0, 1.0], tuple(leaf.shape))))
    return np.concatenate(losses)


def check_same_losses(task: Problem, how: Recipe, draws: Any) -> None:
    """The two frameworks' losses differ by no more than their roundings can make of them.

    Each rounding of a step moves a gradient as a move of some parameter by a unit roundoff would, and training
    carries it on as it carries that. The growth is measured: five runs whose parameters are disturbed by one unit
    roundoff at every step. The roundings of one step amount to at most CHAIN such moves.
    """
    base = losses_of("torch", task, how, draws)
    away = np.max([abs(losses_of("torch", task, how, draws, seed) - base) for seed in range(5)], axis=0)
    bound = CHAIN * (np.maximum.accumulate(away) + UNIT * abs(base))
    difference = abs(losses_of("jax", task, how, draws) - base)
    assert base[-1] != base[0]
    assert (difference <= bound).all(), f"{(difference / bound).max():.3g} of the bound"
    assert bound.max() < 1e-6 * base.max()  # a bound that would let a mistake through is none


def tiny(variant: str) -> Any:
    return little(VARIANTS[variant])._replace(width=8, feed_forward=16, batch=10, epochs=5, bias_hidden=4)


@pytest.mark.parametrize("variant", ["sorting: indirect", "retrieval: query-run cross"])
def test_synthetic_trains_alike_in_torch_and_jax(variant: str, in_64_bits: None) -> None:
    options = tiny(variant)
    task, how = problem(options, [0], "float64"), recipe(options)
    assert how.steps == 50

    def draws(step: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([7, step])
        return {name: rng.random((1, *shape)) for name, shape in task.draws.items()}

    check_same_losses(task, how, draws)


def test_rates_rise_and_fall() -> None:
    table = rates(Recipe(steps=100, batch=1, rate=2.0, decay=0.0))
    assert table[0] == pytest.approx(0.2)
    assert table.argmax() == 9
    assert (np.diff(table[9:]) < 0).all()
    assert 0 < table[-1] < 1e-3


def run(folder: Path, *more: str) -> int:
    name = "retrieval: query-run cross"
    return _cli.main(["synthetic", "--quick", "--only", name, "--seeds", "2", "--out", str(folder), *more])


def results(folder: Path) -> dict[str, Any]:
    paths = sorted(folder.rglob("*.json"))
    return {str(path.relative_to(folder)): json.loads(path.read_text(encoding="utf-8")) for path in paths}


def test_a_stopped_run_goes_on_with_the_same_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "whole") == 0
    whole = results(tmp_path / "whole")
    assert len(whole) == 4  # with and without the bias
    assert run(tmp_path / "parts", "--seconds", "1e-9") == 3
    assert "units are left" in capsys.readouterr().out
    one = _registry.units("synthetic", 2, 1, quick=True, only="retrieval: query-run cross")[0]
    stopped = tmp_path / "parts" / next(iter(whole))
    stopped.parent.mkdir(parents=True)
    stopped.write_text(json.dumps(whole[next(iter(whole))]), encoding="utf-8")
    before = stopped.stat().st_mtime_ns
    assert run(tmp_path / "parts") == 0
    assert stopped.stat().st_mtime_ns == before
    parts = results(tmp_path / "parts")
    assert {name: record["results"] for name, record in parts.items()} == {
        name: record["results"] for name, record in whole.items()
    }
    assert one.options == little(VARIANTS[one.variant])


def test_every_record_names_its_options_versions_and_machine(tmp_path: Path) -> None:
    assert run(tmp_path, "--framework", "jax", "--stack", "2") == 0
    for record in results(tmp_path).values():
        assert record["options"]["model"] == "query-run"
        assert {"processor", "python", "numpy", "jax", "optax"} <= record["environment"].keys()
        assert record["stack"] == 2
        assert 0 <= record["results"]["accuracy"] <= 1
