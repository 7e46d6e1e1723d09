"""Simulation and theory: they agree, whatever library draws and however a run is cut.

Each comparison may be off by 5.2 standard errors: for normal estimates a false alarm has the probability 2e-7. Seeds
are fixed, so that a run that passed passes again.
"""

from __future__ import annotations

import functools
import itertools
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ia_core import simulate
from ia_core.conformance._libraries import from_library, has_device, to_library
from ia_core.simulate import Sampler

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
def test_depth_with_normalisation_is_that_of_a_clean_and_a_noisy_stream(normalisation: str) -> None:
    """Against both streams written out, layer by layer; there is no closed form, and the one without does not do."""
    A, d, count = weights_of(2, N, N), 8, 20000
    sampler = simulate.depth_snr(A, 0.7, dim=d, mean_square=1.0, gain=1.5, normalisation=normalisation)
    assert sampler.theory is None
    found = simulate.run(sampler, precision=0.01, seed=4)
    random = np.random.default_rng(8)
    clean = 1 + random.standard_normal((count, N, d))
    noisy = clean + 0.7 * random.standard_normal((count, N, d))

    def normal(x: np.ndarray) -> np.ndarray:
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True))

    for one in A:
        W = 1.5 * random.standard_normal((count, d, d)) / d**0.5
        clean, noisy = (
            x + one @ normal(x) @ W if normalisation == "pre" else normal(x + one @ x @ W) for x in (clean, noisy)
        )
    energies = np.sum(clean**2, axis=-1), np.sum((noisy - clean) ** 2, axis=-1)
    means = [one.mean(axis=0) for one in energies]
    ratio = means[0] / means[1]
    spread = np.std(energies[0] / means[0] - energies[1] / means[1], axis=0) / count**0.5
    both = np.hypot(found.standard_error / found.mean, spread)
    assert np.all(np.abs(found.mean / ratio - 1) < APART * both)
    linear = simulate.depth_snr(A, 0.7, dim=d, mean_square=1.0, gain=1.5).theory
    assert np.any(np.abs(found.mean / linear - 1) > 10 * both)


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


def test_an_interruption_after_any_block_changes_nothing() -> None:
    """Of all blocks, the last one too, after which nothing more is wanted; and a run that is done draws no more."""
    sampler, small = SAMPLERS["noise_energy"](lambda array: array), {"block_bytes": 2**14, "seed": 6}
    whole = simulate.run(sampler, precision=0.03, **small)
    count = len(whole.state.blocks)
    assert count > 3

    def stop(after: int, so_far: simulate.Result) -> None:
        if len(so_far.state.blocks) == after:
            raise KeyboardInterrupt

    for after in range(1, count + 1):
        half = simulate.run(sampler, precision=0.03, progress=functools.partial(stop, after), **small)
        assert not half.complete
        on = simulate.run(sampler, precision=0.03, state=half.state, **small)
        assert on.complete and on.state == whole.state
    assert simulate.run(sampler, precision=0.03, state=whole.state, **small).state == whole.state


def test_a_state_goes_on_in_blocks_of_its_own_size() -> None:
    sampler = SAMPLERS["noise_energy"](lambda array: array)
    first = simulate.run(sampler, blocks=[0], most=100)
    on = simulate.run(sampler, blocks=[1, 2], most=1000, state=first.state)
    assert on.samples == 300
    again = simulate.run(sampler, blocks=[0, 1, 2], block_bytes=8 * sampler.numbers * 100)
    assert on.state == again.state
    assert simulate.run(sampler, precision=0.2, most=1000, state=first.state).samples % 100 == 0


def test_seeds_of_any_size_are_apart() -> None:
    sampler = SAMPLERS["noise_energy"](lambda array: array)
    found = [simulate.run(sampler, seed=seed, blocks=[k]).mean for seed, k in ((5, 7), (5 + (7 << 32), 0), (7, 5))]
    assert len({mean.tobytes() for mean in found}) == 3


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


def public_samplers() -> set[str]:
    return {name for name in simulate.__all__ if name[0].islower()} - {"load_state", "merge", "run", "save_state"}


def large(name: str, rows: int) -> Sampler:
    """A sampler of many short rows, or of few long ones, with all that takes memory."""
    n, d = (8, 16) if rows > 100 else (128, 24)
    make, wide = getattr(simulate, name), {"value_projection": draw(d, 2 * d), "output_projection": draw(2 * d, 3)}
    if name.endswith("y_noise_energy"):
        return make(draw(2, rows, d), draw(2, n, d), draw(2, n, 40), 0.3)
    if name == "depth_snr":
        return make(weights_of(2, rows // 8, rows // 8), 0.7, dim=d, mean_square=1.0, normalisation="post")
    joint = covariance_of(2 * d)
    both = {"covariance_x": joint[:d, :d], "covariance_y": joint[d:, d:], "cross_covariance": joint[:d, d:]}
    one = {"covariance": covariance_of(d), "mean": draw(d)}
    keywords: dict[str, Any] = both if "misalignment" in name else {"dim": d} if name == "noise_energy" else one
    keywords |= wide if name.startswith("multi") else {"projection": draw(d, d)}
    sigma = [0.7] if name in ("noise_energy", "snr", "multi_head_snr") else []
    return make(weights_of(*((2,) if name.startswith("multi") else ()), rows, n), *sigma, **keywords)


def least_bytes(sampler: Sampler) -> int:
    with pytest.raises(ValueError, match="must be at least") as caught:
        simulate.run(sampler, blocks=[0], block_bytes=0)
    return int(str(caught.value).split("at least ")[1].split(":")[0])


@pytest.mark.parametrize("rows", [16, 1024])
@pytest.mark.parametrize("name", sorted(public_samplers()))
def test_memory_stays_within_what_run_says(name: str, rows: int) -> None:
    """At most 1.25 times block_bytes and 128 KB, from the least block that there is; and most of it is made use of."""
    sampler = large(name, rows)
    for block_bytes in (least_bytes(sampler), 2**24):
        simulate.run(sampler, blocks=[0], block_bytes=block_bytes)  # what is imported and remembered
        tracemalloc.start()
        try:
            simulate.run(sampler, blocks=range(2), block_bytes=block_bytes)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak <= 1.25 * block_bytes + 2**17
    assert peak >= 0.25 * block_bytes


def test_memory_of_many_blocks_is_what_run_says() -> None:
    sampler, block_bytes = SAMPLERS["noise_energy"](lambda array: array), 2**12
    for count in (100, 3000):
        tracemalloc.start()
        simulate.run(sampler, blocks=range(count), block_bytes=block_bytes)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= 1.25 * block_bytes + 2**17 + 256 * count


def test_a_block_has_as_many_samples_as_fit() -> None:
    counts: list[int] = []

    def values(generator: Any, count: int) -> tuple[Any, ...]:
        counts.append(count)
        return (generator.standard_normal((count, 1)),)

    simulate.run(Sampler(values, (1,), 1000), blocks=range(2), block_bytes=80_000)
    simulate.run(Sampler(values, (1,), 1), blocks=range(2), most=2 * 2**16)
    simulate.run(Sampler(values, (1,), 1), blocks=[0], most=7)
    assert counts == [10, 10, 2**16, 2**16, 7]
    text = "`block_bytes` must be at least 128000: a sample takes 64000, of which there must be two.*; got 80000"
    with pytest.raises(ValueError, match=text):
        simulate.run(Sampler(values, (1,), 8000), blocks=range(2), block_bytes=80_000)


def test_precision_is_looked_at_rarely_and_at_the_same_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from ia_core.simulate import _run

    looked: list[int] = []
    estimate = _run.estimate
    monkeypatch.setattr(_run, "estimate", lambda *a: looked.append(a[2]) or estimate(*a))
    sampler, small = SAMPLERS["noise_energy"](lambda array: array), {"block_bytes": 2**14, "seed": 6}
    simulate.run(sampler, blocks=range(50), **small)
    assert looked == []
    whole = simulate.run(sampler, precision=0.006, **small)
    at, looked[:] = list(looked), []
    assert len(whole.state.blocks) == at[-1] > 128
    assert all(later - one <= max(1, one / 16) for one, later in itertools.pairwise(at))
    assert len(at) < at[-1] / 2
    half = simulate.run(sampler, blocks=range(37), **small).state
    assert simulate.run(sampler, precision=0.006, state=half, **small).state == whole.state
    assert looked == [n for n in at if n > 37]


def fractions_of(rows: Any) -> list[Fraction]:
    return [sum(map(Fraction, one), Fraction()) for one in zip(*rows, strict=True)]


@pytest.mark.parametrize("reach", [8, 40, 300])
def test_sums_are_exact_in_any_grouping(reach: int) -> None:
    """Of numbers up to 2^(2 reach) apart, of both signs, which two float64 numbers hold, or not."""
    from ia_core.simulate._exact import add, canonical, fold

    rng = np.random.default_rng(reach)
    numbers = rng.standard_normal((60, 5)) * 2.0 ** rng.integers(-reach, reach, (60, 5))
    wanted = [sum(map(Fraction, column.tolist()), Fraction()) for column in numbers.T]
    zero = (np.zeros(5), np.zeros(5))
    found = []
    for order in (np.arange(60), rng.permutation(60)):
        parts = [zero, zero, zero]
        for n in order:
            parts[n % 3] = add(parts[n % 3], numbers[n])
        found.append(canonical(fold(fold(parts[0], parts[1]), parts[2])))
    assert fractions_of([row.tolist() for row in found[0]]) == wanted
    assert [row.tolist() for row in found[0]] == [row.tolist() for row in found[1]]
    assert found[0][0].tolist() == [float(x) for x in wanted]


def test_any_order_of_parts_merges_to_the_same() -> None:
    sampler, small = SAMPLERS["misalignment_snr"](lambda array: array), {"block_bytes": 2**15, "seed": 5}
    whole = simulate.run(sampler, blocks=range(9), **small).state
    parts = [simulate.run(sampler, blocks=some, **small).state for some in ([8, 0, 3], [1, 7], [2], [6, 5, 4])]
    for order in itertools.permutations(parts):
        one, *others = order
        for other in others:
            one = simulate.merge(other, one)
        assert one == whole


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


def test_a_sampler_is_known_by_its_parameters_and_not_by_its_library() -> None:
    a, mean = weights_of(3, N), draw(D)
    marks = [
        simulate.snr(a, 0.7, mean=mean).fingerprint,
        simulate.snr(a, 0.8, mean=mean).fingerprint,
        simulate.snr(a, 0.7, mean=mean[::-1].copy()).fingerprint,
        simulate.snr(a, 0.7, mean=mean, covariance=np.eye(D)).fingerprint,
        simulate.snr(a[::-1].copy(), 0.7, mean=mean).fingerprint,
        simulate.snr(a.astype(np.float32), 0.7, mean=mean.astype(np.float32)).fingerprint,
        *(make(lambda array: array).fingerprint for make in SAMPLERS.values()),
    ]
    assert len(set(marks)) == len(marks) and "" not in marks
    assert simulate.snr(a, 0.7, mean=mean, dim=D, form="paper").fingerprint == marks[0]
    torch = pytest.importorskip("torch")
    assert simulate.snr(torch.asarray(a), 0.7, mean=torch.asarray(mean)).fingerprint == marks[0]


def test_a_simulation_with_the_papers_form_measures_what_is() -> None:
    """Only what it is compared with changes: inside of the condition they agree, with a mean they do not."""
    a = weights_of(3, N)
    for keywords, agrees in (({"dim": D}, True), ({"mean": np.ones(D)}, False)):
        sampler = simulate.snr(a, 0.7, **keywords, form="paper")
        assert (off(simulate.run(sampler, precision=0.01, seed=1), sampler.theory) < APART) == agrees


def test_the_same_seed_is_the_same_in_every_library() -> None:
    pytest.importorskip("torch")
    here, there = (
        simulate.run(SAMPLERS["snr"](lambda array, name=name: to_library(array, name)), blocks=range(2))
        for name in ("numpy", "torch")
    )
    np.testing.assert_allclose(here.mean, there.mean, rtol=1e-12)
