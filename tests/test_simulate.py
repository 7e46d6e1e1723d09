"""Simulation and theory: they agree, whatever library draws and however a run is cut.

Each comparison may be off by 5.2 standard errors: for normal estimates a false alarm has the probability 2e-7. Seeds
are fixed, so that a run that passed passes again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ia_core import simulate
from ia_core.conformance._libraries import from_library, has_device, to_library
from ia_core.simulate import Sampler, State

N, D, H = 6, 8, 2
APART = 5.2


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng([3, *shape]).standard_normal(shape)


def weights_of(*shape: int) -> np.ndarray:
    raised = np.exp(2 * draw(*shape))
    return raised / raised.sum(axis=-1, keepdims=True)


def covariance_of(d: int) -> np.ndarray:
    factor = draw(d, d - 1)  # singular: one direction has no variance
    return factor @ factor.T / d


JOINT = covariance_of(2 * D)
MISALIGNED = {"covariance_x": JOINT[:D, :D], "covariance_y": JOINT[D:, D:], "cross_covariance": JOINT[:D, D:]}
MEANS = {"mean_x": draw(D), "mean_y": 2 * draw(D)[::-1].copy()}
SAMPLERS: dict[str, Callable[[Any], Sampler]] = {
    "noise_energy": lambda put: simulate.noise_energy(
        put(weights_of(3, N)), 0.7, noise_covariance=put(covariance_of(D)), projection=put(draw(D, 5))
    ),
    "signal_energy": lambda put: simulate.signal_energy(
        put(weights_of(3, N)), mean=put(draw(D)), covariance=put(covariance_of(D)), projection=put(draw(D, 5))
    ),
    "snr": lambda put: simulate.snr(put(weights_of(2, 3, N)), 0.7, mean=put(draw(D)), covariance=put(covariance_of(D))),
    "misalignment_energy": lambda put: simulate.misalignment_energy(
        put(weights_of(3, N)), **{name: put(array) for name, array in (MISALIGNED | MEANS).items()}
    ),
    "misalignment_snr": lambda put: simulate.misalignment_snr(
        put(weights_of(3, N)), mean_y=put(draw(D)), projection=put(draw(D, 5))
    ),
    "multi_head_snr": lambda put: simulate.multi_head_snr(
        put(weights_of(H, 3, N)), 0.7, mean=put(draw(D)), output_projection=put(draw(D, 5))
    ),
    "multi_head_misalignment_snr": lambda put: simulate.multi_head_misalignment_snr(
        put(weights_of(2, H, 3, N)),
        **{name: put(array) for name, array in (MISALIGNED | MEANS).items()},
        value_projection=put(draw(D, 6)),
        output_projection=put(draw(6, 5)),
    ),
    "depth_snr": lambda put: simulate.depth_snr(put(weights_of(2, N, N)), 0.7, dim=D, mean_square=0.5),
}


def off(found: simulate.Result, theory: Any) -> float:
    """The largest distance, in standard errors."""
    wanted, _ = from_library(theory)
    return float(np.max(np.abs(found.mean - wanted) / found.standard_error))


@pytest.mark.parametrize("library", ["numpy", "torch", "jax", "cupy"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_theory_agrees(name: str, library: str) -> None:
    if not has_device(library):
        pytest.skip(f"{library} is not installed, or has no device (CuPy needs a GPU)")
    sampler = SAMPLERS[name](lambda array: to_library(array, library))
    found = simulate.run(sampler, precision=0.01, seed=1)
    assert found.complete
    assert found.precision <= 0.01
    assert found.mean.shape == sampler.shape
    assert off(found, sampler.theory) < APART
    # A law that is off by a few of these errors is seen to be: the simulation can refute.
    assert off(found, 1.1 * from_library(sampler.theory)[0]) > APART


@pytest.mark.parametrize("what", ["key", "query"])
def test_noise_of_the_scores_is_of_first_order(what: str) -> None:
    """The difference from the first order falls with sigma^2: it shows at 1, and is gone at 0.05."""
    query, key, value = draw(1, 2, 4), draw(1, N, 4), draw(1, N, 3)
    for sigma, agrees in ((0.05, True), (1.0, False)):
        sampler = getattr(simulate, f"{what}_noise_energy")(query, key, value, sigma)
        found = simulate.run(sampler, precision=0.01, seed=2)
        assert (off(found, sampler.theory) < APART) == agrees


@pytest.mark.parametrize("normalisation", ["pre", "post"])
def test_depth_with_normalisation_is_right_for_wide_tokens(normalisation: str) -> None:
    """What the closed form leaves out falls as tokens grow wider. (Narrower than 5, the squares have no variance.)"""
    A = weights_of(3, N, N)
    away = []
    for dim in (8, 128):
        sampler = simulate.depth_snr(A, 0.7, dim=dim, mean_square=1.0, normalisation=normalisation)
        found = simulate.run(sampler, precision=0.005, seed=4)
        away.append(float(np.max(np.abs(found.mean / sampler.theory - 1))))
    assert away[1] < away[0] / 4


def test_two_halves_merge_to_the_whole(tmp_path: Path) -> None:
    """To the last bit, in any order, through files."""
    sampler = SAMPLERS["snr"](lambda array: array)
    small = {"block_bytes": 2**14, "seed": 5}
    whole = simulate.run(sampler, blocks=range(20), **small)
    halves = [simulate.run(sampler, blocks=some, **small).state for some in (range(11), range(11, 20))]
    for name, half in zip("ab", halves, strict=True):
        simulate.save_state(half, tmp_path / name)
    a, b = (simulate.load_state(tmp_path / name) for name in "ab")
    assert simulate.merge(a, b) == simulate.merge(b, a) == whole.state
    assert simulate.run(sampler, blocks=range(11, 20), state=a, **small).state == whole.state
    assert whole.samples == 20 * whole.state.block
    again = simulate.run(sampler, blocks=[], state=whole.state, **small)
    np.testing.assert_array_equal(again.mean, whole.mean)


def test_an_interrupted_run_gives_what_it_has_and_goes_on() -> None:
    sampler = SAMPLERS["noise_energy"](lambda array: array)
    small = {"block_bytes": 2**14, "seed": 6}

    def stop(so_far: simulate.Result) -> None:
        if len(so_far.state.blocks) == 7:
            raise KeyboardInterrupt

    half = simulate.run(sampler, precision=0.01, progress=stop, **small)
    assert not half.complete
    assert half.state.blocks == frozenset(range(7))
    whole = simulate.run(sampler, precision=0.01, state=half.state, **small)
    assert whole.state == simulate.run(sampler, precision=0.01, **small).state


def test_moments_are_those_of_the_samples() -> None:
    """Against the plain formulas, for values with a large mean, where sums of squares would cancel."""
    values = [1e8 + draw(3, 40, 2), draw(3, 40, 2)]
    blocks = iter([[one[n] for one in values] for n in range(3)])
    state = None
    from ia_core.simulate._state import block_state, moments

    for n in range(3):
        new = block_state(0, n, next(blocks), (2,))
        state = new if state is None else simulate.merge(state, new)
    means, covariances = moments(state)
    flat = [one.reshape(120, 2) for one in values]
    np.testing.assert_allclose(means, [one.mean(axis=0) for one in flat], rtol=1e-12)
    for k in range(2):
        np.testing.assert_allclose(covariances[..., k], np.cov(flat[0][:, k], flat[1][:, k]), rtol=1e-6)


def test_memory_is_bounded_by_the_block() -> None:
    counts: list[int] = []

    def values(generator: Any, count: int) -> tuple[Any, ...]:
        counts.append(count)
        return (generator.standard_normal((count, 1)),)

    simulate.run(Sampler(values, (1,), 1000), blocks=range(2), block_bytes=80_000)
    simulate.run(Sampler(values, (1,), 10**9), blocks=range(2), block_bytes=80_000)
    assert counts == [10, 10, 2, 2]


def test_results_can_be_shown() -> None:
    found = simulate.run(SAMPLERS["noise_energy"](lambda array: array), precision=0.02)
    low, high = found.interval(0.99)
    assert np.all((low < found.mean) & (found.mean < high))
    table = found.table(["a", "b", "c"], theory=found.mean)
    assert table.count("\n") == 3
    assert "theory" in table
    assert "+0.00" in table
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    axes = plt.figure().subplots()
    found.plot(axes, theory=found.mean)
    assert len(axes.lines) >= 2


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from ia_core.simulate import _run

    clock = iter(range(1000))
    monkeypatch.setattr(_run.time, "monotonic", lambda: next(clock))
    simulate.run(SAMPLERS["noise_energy"](lambda array: array), blocks=range(2), progress=True)
    assert "samples, precision" in capsys.readouterr().err


SAMPLER = simulate.noise_energy(np.full((1, 4), 0.25), 1.0, dim=2)
HALF = State(0, 2, (), frozenset({0}), (Fraction(3),), (Fraction(5),))
ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "none": (lambda: simulate.run(SAMPLER, blocks=[]), r"needs samples; it was asked for none \[IA-X-38\]"),
    "most": (lambda: simulate.run(SAMPLER, most=0), r"asked for none \[IA-X-38\]"),
    "precision": (lambda: simulate.run(SAMPLER, precision=0.0), r"`precision` must be .*; got 0.0 \[IA-X-38\]"),
    "unreachable": (
        lambda: simulate.run(SAMPLER, precision=1e-9),
        r"`precision` 1e-09 needs about \S+e\+1\d samples, more than `most`, 1e\+09 \[IA-X-38\]",
    ),
    "both": (lambda: simulate.run(SAMPLER, precision=0.1, blocks=[0]), r"not both \[IA-X-38\]"),
    "confidence": (
        lambda: simulate.run(SAMPLER, blocks=[0]).interval(95),
        r"`confidence` must be between 0 and 1; got 95 \[IA-X-38\]",
    ),
    "seeds": (lambda: simulate.merge(HALF, HALF._replace(seed=1)), r"one `seed`; got 0 and 1 \[IA-X-39\]"),
    "twice": (lambda: simulate.merge(HALF, HALF), r"no block in common; both have 0 \[IA-X-39\]"),
    "samplers": (
        lambda: simulate.merge(HALF, HALF._replace(totals=(Fraction(1), Fraction(1)), blocks=frozenset({1}))),
        r"one sampler \[IA-X-39\]",
    ),
    "other": (lambda: simulate.run(SAMPLER, state=HALF), r"one `block`; got 2 and .* \[IA-X-39\]"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_refused(name: str) -> None:
    call, text = ERRORS[name]
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: None,
        lambda data: [],
        lambda data: {},
        lambda data: data | {"simulation": 2},
        lambda data: data | {"totals": ["1/0"]},
        lambda data: data | {"totals": ["__import__"]},
        lambda data: data | {"products": []},
        lambda data: data | {"block": 0},
        lambda data: data | {"further": 1},
    ],
)
def test_a_damaged_state_is_refused(damage: Callable[[Any], Any], tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    simulate.save_state(HALF, path)
    path.write_text(json.dumps(damage(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")
    with pytest.raises(ValueError, match=r"is no state of a simulation, or is damaged: .* \[IA-X-39\]"):
        simulate.load_state(path)


def test_the_same_seed_is_the_same_in_every_library() -> None:
    pytest.importorskip("torch")
    here, there = (
        simulate.run(SAMPLERS["snr"](lambda array, name=name: to_library(array, name)), blocks=range(2))
        for name in ("numpy", "torch")
    )
    np.testing.assert_allclose(here.mean, there.mean, rtol=1e-12)


def test_what_a_closed_form_takes_and_a_simulation_does_not_is_refused() -> None:
    with pytest.raises(TypeError, match=r"`sigma` must be a real number; got ndarray \[IA-X-37\]"):
        simulate.noise_energy(weights_of(3, N), np.ones(3), dim=D)
    with pytest.raises(ValueError, match=r"one mean, with 1 axes; got \(3, 8\) \[IA-X-35\]"):
        simulate.signal_energy(weights_of(3, N), mean=np.ones((3, D)))
