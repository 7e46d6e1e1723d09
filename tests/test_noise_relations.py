"""What ties each closed form of ia_core.noise to those that benchmarks/noise_grid.py compares with a simulation.

Identities, without sampling, in every library: one that fails convicts one of its two sides. Tolerances are a few
thousand roundings of float64; what is compared differs by the order of sums alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ia_core import attention_weights, noise
from ia_core.conformance._libraries import from_library, has_device, to_library

ROOT = Path(__file__).parents[1]
N, D, H, M, SIGMA = 7, 6, 3, 4, 0.7
LIBRARIES = ["numpy", "torch", "jax", "cupy"]
# Here, to those that the grid compares with a simulation (of one head to several, where both are).
TIED = {
    *("critical_sigma", "multi_head_critical_sigma", "equivalent_sigma", "effective_tokens", "head_overlaps"),
    *("noise_bound", "tempered_weights"),
}
Put = Callable[[np.ndarray], Any]


@pytest.fixture(params=LIBRARIES)
def put(request: pytest.FixtureRequest) -> Put:
    if not has_device(request.param):
        pytest.skip(f"{request.param} is not installed, or has no device (CuPy needs a GPU)")
    return lambda array: to_library(array, request.param)


def draw(*shape: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def weights_of(*shape: int) -> np.ndarray:
    """A one-hot row, a uniform row, and softmax rows."""
    raised = np.exp(2 * draw(*shape))
    a = raised / raised.sum(axis=-1, keepdims=True)
    a[..., 0, :], a[..., 1, :] = np.eye(shape[-1])[2], 1 / shape[-1]
    return a


def near(found: Any, wanted: Any, rtol: float = 1e-12) -> None:
    found, wanted = (x if isinstance(x, float | np.ndarray) else from_library(x)[0] for x in (found, wanted))
    np.testing.assert_allclose(found, wanted, rtol=rtol)


def values_of(put: Put) -> dict[str, dict[str, Any]]:
    """Keywords of general moments: of tokens, of noise, of pairs aligned in part."""
    F, own, noisy = draw(D, 2 * D), draw(D, 2 * D, seed=6), draw(D, D)
    G = 0.8 * F + 0.6 * own
    pairs = {"mean_x": draw(D), "mean_y": draw(D, seed=6), "covariance_x": F @ F.T, "covariance_y": G @ G.T}
    pairs["cross_covariance"] = F @ G.T
    tokens, of_noise = {"mean": draw(D), "covariance": F @ F.T}, {"noise_covariance": noisy @ noisy.T}
    every = {"tokens": tokens, "noise": of_noise, "pairs": pairs}
    return {name: {key: put(array) for key, array in arrays.items()} for name, arrays in every.items()}


CASES = ["plain", "projected"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", ["exact", "paper"])
def test_one_head_is_several_heads_of_one(put: Put, case: str, form: str) -> None:
    """Head axis of 1; with a projection, it is the value projection, and the output projection the identity."""
    values, a = values_of(put), weights_of(M, N)
    tokens, of_noise, pairs = (values[name] for name in ("tokens", "noise", "pairs"))
    W = {"projection": put(draw(D, 5))} if case == "projected" else {}
    V = {"value_projection": put(draw(D, 5)), "output_projection": put(np.eye(5))} if W else {}
    one, several = put(a), put(a[None])
    calls: dict[str, tuple[tuple[float, ...], dict[str, Any]]] = {
        "noise_energy": ((SIGMA,), of_noise),
        "signal_energy": ((), tokens),
        "snr": ((SIGMA,), tokens | of_noise),
        "critical_sigma": ((), tokens | of_noise),
        "misalignment_energy": ((), pairs),
        "misalignment_snr": ((), pairs),
    }
    for name, (numbers, keywords) in calls.items():
        if form == "paper" and W and name.startswith("misalignment"):
            continue  # of several heads it is the shift of the heads' values, of one that of the tokens
        found = getattr(noise, name)(one, *numbers, **keywords, **W, form=form)
        near(getattr(noise, f"multi_head_{name}")(several, *numbers, **keywords, **V, form=form), found)


def test_equal_heads_that_share_a_projection_are_one_head(put: Put) -> None:
    """H heads of the same weights, V = [W .. W], O = I / H below each other: their mean, which is one of them."""
    a, W, values = weights_of(M, N), draw(D, 5), values_of(put)
    several = put(np.broadcast_to(a, (H, M, N)).copy())
    V = {"value_projection": put(np.tile(W, H)), "output_projection": put(np.tile(np.eye(5) / H, (H, 1)))}
    for name, numbers, of in (
        ("noise_energy", (SIGMA,), "noise"),
        ("signal_energy", (), "tokens"),
        ("misalignment_energy", (), "pairs"),
    ):
        wanted = getattr(noise, name)(put(a), *numbers, **values[of], projection=put(W))
        near(getattr(noise, f"multi_head_{name}")(several, *numbers, **values[of], **V), wanted)


@pytest.mark.parametrize("prefix", ["", "multi_head_"])
def test_ratios_and_thresholds_are_made_of_the_energies(put: Put, prefix: str) -> None:
    """snr = signal / noise, which is 1 at critical_sigma; the misalignment's likewise."""
    a, values = put(weights_of(H, M, N)), values_of(put)
    tokens, of_noise, pairs = (values[name] for name in ("tokens", "noise", "pairs"))
    call = {name: getattr(noise, prefix + name) for name in ("noise_energy", "signal_energy", "snr", "critical_sigma")}
    signal, noisy = call["signal_energy"](a, **tokens), call["noise_energy"](a, SIGMA, **of_noise)
    near(call["snr"](a, SIGMA, **tokens, **of_noise), signal / noisy)
    threshold = call["critical_sigma"](a, **tokens, **of_noise)
    near(call["snr"](a, threshold, **tokens, **of_noise), np.ones(threshold.shape))
    near(call["noise_energy"](a, threshold, **of_noise), signal)
    aligned = call["signal_energy"](a, mean=pairs["mean_x"], covariance=pairs["covariance_x"])
    gamma = getattr(noise, f"{prefix}misalignment_energy")(a, **pairs)
    near(getattr(noise, f"{prefix}misalignment_snr")(a, **pairs), aligned / gamma)


def test_equivalent_sigma_does_as_much_harm(put: Put) -> None:
    a, values, W = put(weights_of(M, N)), values_of(put), {"projection": put(draw(D, 5))}
    gamma = noise.misalignment_energy(a, **values["pairs"], **W)
    level = noise.equivalent_sigma(a, gamma, **values["noise"], **W)
    near(noise.noise_energy(a, level, **values["noise"], **W), gamma)


def test_effective_tokens_and_overlaps_are_sums_of_squares(put: Put) -> None:
    a = weights_of(H, M, N)
    near(noise.effective_tokens(put(a)), 1 / np.sum(a * a, axis=-1))
    near(noise.head_overlaps(put(a)), np.einsum("hmn,gmn->mhg", a, a))
    # The diagonal of the overlaps, and the energy of white noise of unit level in tokens of width 1.
    near(noise.noise_energy(put(a), 1.0, dim=1), 1 / from_library(noise.effective_tokens(put(a)))[0])


def test_no_sample_exceeds_the_bound_of_lemma_1(put: Put) -> None:
    """2,000 samples; one-hot weights meet the bound, and noise of one direction does at any weights."""
    W, eps = draw(D, 5), draw(500, 1, N, D)
    a = np.broadcast_to(weights_of(M, N), (500, M, N)).copy()
    found, _ = from_library(noise.noise_bound(put(a), put(eps), projection=put(W)))
    real = np.linalg.norm(a[..., None, :] @ (eps @ W), axis=-1)[..., 0]
    assert np.all(real <= found * (1 + 1e-14))
    near(found[:, 0], real[:, 0])
    assert np.all(real[:, 1:] < found[:, 1:])
    parallel = np.abs(draw(N, 1)) * draw(1, D)
    near(noise.noise_bound(put(a[0]), put(parallel)), np.linalg.norm(a[0] @ parallel, axis=-1))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_a_temperature_is_a_scale_of_the_scores(put: Put, temperature: float) -> None:
    query, key = put(draw(H, M, D)), put(draw(H, N, D))
    found = noise.tempered_weights(attention_weights(query, key, scale=1.0), temperature)
    near(found, attention_weights(query, key, scale=1 / temperature), rtol=1e-11)


def test_a_sequence_has_no_misalignment_with_itself(put: Put) -> None:
    """And what is aligned in part lies between: with correlation rho it is 1 - rho of the independent one."""
    a, F = put(weights_of(M, N)), draw(D, D)
    S, m = put(F @ F.T), put(draw(D))
    same = {"mean_x": m, "mean_y": m, "covariance_x": S, "covariance_y": S}
    apart = noise.misalignment_energy(a, **same)
    for rho in (0.0, 0.25, 1.0):
        found = noise.misalignment_energy(a, **same, cross_covariance=rho * S)
        np.testing.assert_allclose(
            from_library(found)[0],
            (1 - rho) * from_library(apart)[0],
            rtol=1e-12,
            atol=1e-12 * float(np.trace(F @ F.T)),
        )


def test_one_layer_of_depth_by_hand(put: Put) -> None:
    """One layer, by hand: K + g^2 A K A^T; and one of gain 0 changes nothing."""
    A, g, m = weights_of(N, N), 0.6, 0.8
    K = np.eye(N) + m
    signal, noisy = (np.diagonal(C + g * g * A @ C @ A.T) for C in (K, SIGMA**2 * np.eye(N)))
    near(noise.depth_snr(put(A[None]), SIGMA, mean_square=m, gain=g)[-1, :], signal / noisy)
    still = noise.depth_snr(put(A[None]), SIGMA, mean_square=m, gain=0.0)
    near(still, np.full((2, N), (1 + m) / SIGMA**2))


def test_depth_with_a_mean(put: Put) -> None:
    """No token falls below its start, the lowest of all never falls; one that attends to one of less mixing may."""
    one, uniform = np.eye(4), np.full(4, 0.25)
    first, second = np.stack([uniform, one[1], one[2], one[3]]), np.stack([one[1], one[1], one[2], one[3]])
    found = from_library(noise.depth_snr(put(np.stack([first, second])), 1.0, mean_square=1.0))[0]
    np.testing.assert_allclose(found[:, 0], [2, 2.6, 29 / 13], rtol=1e-12)
    for seed in range(20):
        weights = np.exp(3 * draw(5, N, N, seed=seed))
        weights /= weights.sum(axis=-1, keepdims=True)
        found = from_library(noise.depth_snr(put(weights), SIGMA, mean_square=0.7, gain=1.3))[0]
        assert np.all(found >= 1.7 / SIGMA**2 * (1 - 1e-12))
        assert np.all(np.diff(found.min(axis=-1)) >= -1e-12)


def test_noise_of_scores_sees_products_of_queries_and_keys_alone(put: Put) -> None:
    """The same in rotated axes, and with further axes of zeros, where the scale is given."""
    query, key, value = draw(H, M, D), draw(H, N, D), draw(H, N, 3)
    rotation = np.linalg.qr(draw(4 * D, 4 * D))[0]
    wide = [np.concatenate([x, np.zeros((*x.shape[:-1], 3 * D))], axis=-1) @ rotation for x in (query, key)]
    a = attention_weights(query, key, scale=0.3)
    for form, number in ((noise.key_noise_energy, 0), (noise.query_noise_energy, 1)):
        narrow = form(put(a), put((query, key)[number]), put(value), SIGMA, scale=0.3)
        near(form(put(a), put(wide[number]), put(value), SIGMA, scale=0.3), from_library(narrow)[0], rtol=1e-10)


def test_every_closed_form_has_its_evidence() -> None:
    """A form that is added to the public names is to be compared with a simulation, or tied to one that is."""
    grid = json.loads((ROOT / "docs/results/noise_grid.json").read_text(encoding="utf-8"))
    simulated = [set(record["forms"]) for record in grid["libraries"].values()]
    assert set(grid["libraries"]) >= {"numpy", "torch", "jax"} and grid["precision"] <= 0.003
    assert all(forms == simulated[0] for forms in simulated)
    assert all(record["beyond"] == [] for record in grid["libraries"].values())
    assert grid["seconds"] < 300 and grid["workers"] == 2
    assert grid["grid"]["d"] == [4, 16, 64, 256] and grid["grid"]["n"] == [1, 8, 64, 512]
    assert grid["grid"]["heads"] == [1, 4, 8] and len(grid["grid"]["sharpness"]) == 3 and grid["grid"]["mean"][0] == 0
    assert simulated[0] | TIED == set(noise.__all__) and not simulated[0] & TIED


def test_the_grid_runs_and_says_what_it_did() -> None:
    """One part, roughly: the record names code, versions, samples and the precision that was reached."""
    words = ["--library", "numpy", "--part", "general", "--precision", "0.2", "--workers", "1"]
    script = str(ROOT / "benchmarks/noise_grid.py")
    ended = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, check=False)
    facts = json.loads((ROOT / "build/noise_grid.json").read_text(encoding="utf-8"))
    assert ended.returncode in (0, 1), ended.stderr  # so few samples are far from normal: one may be far off
    record = facts["libraries"]["numpy"]
    assert record["comparisons"] == len(record["groups"]) * 9 == 108
    assert all(group["samples"] >= 256 and group["precision"] <= 0.2 for group in record["groups"])
    assert {len(code) for code in facts["code"].values()} == {64}
    assert facts["seconds"] > 0
    assert {"python", "numpy"} <= set(facts["versions"])
