"""Verdicts and tables are read off the results: made-up ones that must come out one way or the other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from experiments._registry import NAMES
from experiments.report._claims import claims
from experiments.report._page import page
from experiments.report._statistics import Results, estimate

pytest.importorskip("scipy")


def made_up(means: dict[str, float], wrap: Any, spread: float = 0.01, seeds: int = 5) -> Results:
    rng = np.random.default_rng(9)
    about = {"framework": "torch", "device": "cpu", "environment": {"processor": "one"}, "options": {"noise": False}}
    return Results(
        {
            name: {
                (seed % 2, seed): {**about, "results": wrap(mean + spread * rng.standard_normal())}
                for seed in range(seeds)
            }
            for name, mean in means.items()
        }
    )


def verdicts(**results: Results) -> dict[str, str]:
    found = {name: results.get(name, Results({})) for name in NAMES}
    return {one.text: one.verdict for one in claims(found)}


def accuracy(value: float) -> dict[str, Any]:
    noise = {"sigma": [[0.0, value], [1.0, 0.9 * value]], "first_layer_snr": 3.0}
    return {"accuracy": value, "accuracy_200": value, "noise": noise}


@pytest.mark.parametrize(
    ("indirect", "cross", "naive", "verdict"),
    [
        (0.9, 0.7, 0.5, "holds"),
        (0.9, 0.5, 0.7, "not reproduced; indirect > naive > cross when blocks have no self-attention"),
        (0.5, 0.7, 0.9, "not reproduced"),
        (0.7, 0.7, 0.5, "not reproduced"),
    ],
)
def test_order_of_the_models(indirect: float, cross: float, naive: float, verdict: str) -> None:
    means = {"sorting: indirect": indirect, "sorting: cross": cross, "sorting: naive": naive}
    found = verdicts(synthetic=made_up(means, accuracy, spread=0.001 if indirect != cross else 0.0))
    assert found["sorting: indirect > cross > naive"] == verdict


@pytest.mark.parametrize(
    ("plain", "same", "verdict"),
    [
        (80.0, 80.0, "holds"),
        (80.0, 99.0, "holds when double cross-attention has no box bias"),
        (99.0, 80.0, "not reproduced"),
    ],
)
def test_detection_against_double_cross_attention(plain: float, same: float, verdict: str) -> None:
    means = {"indirect": 90.0, "double cross": plain, "double cross with the bias": same}
    results = made_up(means, lambda value: {"seen": {"AP50": value}, "unseen": {"AP50": value}})
    assert verdict in verdicts(osod=results).values()


@pytest.mark.parametrize(
    ("short", "beyond", "verdict"),
    [
        (90.0, 88.0, "holds"),
        (90.0, 40.0, "holds when the gaps are those of training"),
        (70.0, 40.0, "not reproduced"),
        (70.0, 88.0, "not reproduced"),
    ],
)
def test_stability_under_misalignment(short: float, beyond: float, verdict: str) -> None:
    def recall(value: float) -> dict[str, Any]:
        found = {"0": short, "3": value, "6": value, "12": beyond}
        return {"recall": {gap: {"word_at_1": share} for gap, share in found.items()}}

    found = verdicts(retrieval=made_up({"indirect": 90.0, "dual encoder": 70.0}, recall))
    assert found["Its performance stays stable under severe misalignment"] == verdict


def test_without_results_nothing_is_claimed() -> None:
    assert set(verdicts().values()) == {"not run yet"}
    assert page({name: Results({}) for name in NAMES}).count("not run yet") > 60


def test_interval_covers_as_often_as_it_says() -> None:
    """Of 2,000 intervals of 5 normal numbers 95 % hold the mean, within five standard errors (1e-6)."""
    rng = np.random.default_rng(10)
    inside = [abs(found.mean) <= found.half for found in (estimate(rng.standard_normal(5)) for _ in range(2000))]
    assert abs(np.mean(inside) - 0.95) < 5.0 * math.sqrt(0.95 * 0.05 / 2000)


def test_one_seed_has_no_interval() -> None:
    assert estimate([0.5]).text(2) == "0.50"
    assert estimate([0.5, 0.7]).n == 2
