"""What simulations refuse: what cannot be drawn, and states that are damaged or of other simulations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ia_core import simulate
from ia_core.simulate import Sampler, State

from .test_simulate import D, N, weights_of

SAMPLER = simulate.noise_energy(np.full((1, 4), 0.25), 1.0, dim=2)
HALF = State(0, 2, (), frozenset({0}), 1, ((3.0, 9.0, 0.5), (0.0, 0.0, 0.0)), "one")
EYES = dict.fromkeys(("covariance_x", "covariance_y", "cross_covariance"), np.eye(2))
ALIGNED = simulate.misalignment_snr(np.full((1, 4), 0.25), **EYES)
WRONG = {
    "three": Sampler(lambda generator, count: (np.ones((count, 1)),) * 3, (1,), 1),
    "shape": Sampler(lambda generator, count: (np.ones((count, 2)),), (1,), 1),
    "nan": Sampler(lambda generator, count: (np.full((count, 1), np.nan),), (1,), 1),
    "none": Sampler(lambda generator, count: (np.ones((count, 1)), np.zeros((count, 1))), (1,), 1),
}
ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "none": (lambda: simulate.run(SAMPLER, blocks=[]), r"needs samples; it was asked for none \[IA-X-38\]"),
    "most": (lambda: simulate.run(SAMPLER, most=0), r"asked for none \[IA-X-38\]"),
    "few": (
        lambda: simulate.run(SAMPLER, most=10, precision=0.2),
        r"`most` must be at least 256: .*; got 10 \[IA-X-38",
    ),
    "room": (
        lambda: simulate.run(SAMPLER, most=300, precision=0.05),
        r"`precision` 0.05 needs about \S+ samples, more than `most`, 300, allows in blocks of 300 \[IA-X-38\]",
    ),
    "blocks of most": (
        lambda: simulate.run(SAMPLER, most=300, blocks=[0, 1]),
        r"2 blocks of 300 samples, after 0, are more than `most`, 300 \[IA-X-38\]",
    ),
    "precision": (lambda: simulate.run(SAMPLER, precision=0.0), r"`precision` must be .*; got 0.0 \[IA-X-38\]"),
    "nan": (lambda: simulate.run(SAMPLER, precision=np.nan), r"`precision` must be .*; got nan \[IA-X-38\]"),
    "word": (lambda: simulate.run(SAMPLER, precision="1"), r"`precision` must be .*; got '1' \[IA-X-38\]"),
    "unreachable": (
        lambda: simulate.run(SAMPLER, precision=1e-9),
        r"`precision` 1e-09 needs about \S+e\+1\d samples, more than `most`, 1e\+09, allows in .* \[IA-X-38\]",
    ),
    "aligned": (
        lambda: simulate.run(ALIGNED),
        r"`precision` 0.003 cannot be reached: the closed form is not finite, .* denominator is 0 \[IA-X-38\]",
    ),
    "zero": (
        lambda: simulate.run(WRONG["none"], precision=0.1),
        r"`precision` 0.1 cannot be reached: an estimate is not finite, .* denominator is 0 \[IA-X-38\]",
    ),
    "both": (lambda: simulate.run(SAMPLER, precision=0.1, blocks=[0]), r"not both \[IA-X-38\]"),
    "index": (lambda: simulate.run(SAMPLER, blocks=[-1]), r"`blocks` must be .* not negative; got -1 \[IA-X-38\]"),
    "same index": (lambda: simulate.run(SAMPLER, blocks=[1, 1]), r"`blocks` must have no block twice \[IA-X-38\]"),
    "seed": (lambda: simulate.run(SAMPLER, seed=-1), r"`seed` must be .* not negative; got -1 \[IA-X-38\]"),
    "word seed": (lambda: simulate.run(SAMPLER, seed="1"), r"`seed` must be an integer; got str \[IA-X-38\]"),
    "endless": (lambda: simulate.run(SAMPLER, most=np.inf), r"`most` must be an integer, .*; got inf \[IA-X-38\]"),
    "half a seed": (lambda: simulate.run(SAMPLER, seed=0.5), r"`seed` must be an integer, .*; got 0.5 \[IA-X-38\]"),
    "bytes": (lambda: simulate.run(SAMPLER, block_bytes=-5), r"`block_bytes` must be .*; got -5 \[IA-X-38\]"),
    "three": (lambda: simulate.run(WRONG["three"], blocks=[0]), r"one array of shape \(65536, 1\), or two; .*IA-X-38"),
    "shape": (lambda: simulate.run(WRONG["shape"], blocks=[0]), r"it drew \(65536, 2\) \[IA-X-38\]"),
    "not finite": (lambda: simulate.run(WRONG["nan"], blocks=[3]), r"finite numbers; .* block 3 are not \[IA-X-38\]"),
    "confidence": (
        lambda: simulate.run(SAMPLER, blocks=[0]).interval(95),
        r"`confidence` must be between 0 and 1; got 95 \[IA-X-38\]",
    ),
    "seeds": (lambda: simulate.merge(HALF, HALF._replace(seed=1)), r"one `seed`; got 0 and 1 \[IA-X-39\]"),
    "twice": (lambda: simulate.merge(HALF, HALF), r"no block in common; both have 0 \[IA-X-39\]"),
    "components": (
        lambda: simulate.merge(HALF, HALF._replace(components=2, blocks=frozenset({1}))),
        r"one number of `components`; got 1 and 2 \[IA-X-39\]",
    ),
    "samplers": (
        lambda: simulate.merge(HALF, HALF._replace(sampler="two", blocks=frozenset({1}))),
        r"of one sampler; got the fingerprints one and two \[IA-X-39\]",
    ),
    "other": (
        lambda: simulate.run(SAMPLER, state=HALF._replace(sampler=SAMPLER.fingerprint, shape=(1,), block=10**6)),
        r"one `block`; got 1000000 and .* \[IA-X-39\]",
    ),
    "small": (
        lambda: simulate.run(simulate.noise_energy(np.full((1, 4), 0.25), 1e-80, dim=2), blocks=[0]),
        r"sums over a block are 0 or between 1e-130 and 1e\+140; one over block 0 is not \[IA-X-38\]",
    ),
    "large": (
        lambda: simulate.run(Sampler(lambda g, count: (np.full((count, 1), 1e148),), (1,), 1), blocks=[0]),
        r"one over block 0 is not \[IA-X-38\]",
    ),
    "no sampler": (lambda: simulate.run(3), r"`sampler` must be a Sampler; got int \[IA-X-38\]"),
    "one block": (lambda: simulate.run(SAMPLER, blocks=5), r"`blocks` must be iterable; got int \[IA-X-38\]"),
    "progress": (lambda: simulate.run(SAMPLER, progress=1), r"`progress` must be True, False or callable; got int"),
    "sigma": (
        lambda: simulate.run(
            simulate.noise_energy(np.full((1, 4), 0.25), 2.0, dim=2), state=simulate.run(SAMPLER, blocks=[0]).state
        ),
        r"of one sampler; got the fingerprints noise_energy \w{32} and noise_energy \w{32} \[IA-X-39\]",
    ),
    "no state": (lambda: simulate.run(SAMPLER, state=3), r"`state` must be a State; got int \[IA-X-39\]"),
}


KINDS = ("no state", "word seed", "no sampler", "one block", "progress")


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_refused(name: str) -> None:
    call, text = ERRORS[name]
    with pytest.raises(TypeError if name in KINDS else ValueError, match=text):
        call()


def test_most_is_never_exceeded() -> None:
    assert simulate.run(SAMPLER, most=1000, precision=np.float32(0.2)).samples <= 1000
    text = r"needs about \S+ samples, more than `most`, 400, allows in blocks of 256 \[IA-X-38\]"
    with pytest.raises(ValueError, match=text):
        simulate.run(SAMPLER, most=400, precision=0.055, block_bytes=8 * SAMPLER.numbers * 256)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: None,
        lambda data: [],
        lambda data: {},
        lambda data: data | {"simulation": 3},
        lambda data: data | {"sums": [["x"] * 3] * 2},
        lambda data: data | {"sums": [[1.0, 1.0, float("nan")], [0.0] * 3]},
        lambda data: data | {"sums": [[1.0] * 3]},
        lambda data: data | {"components": 2},
        lambda data: data | {"seed": -1},
        lambda data: data | {"sampler": None},
        lambda data: data | {"blocks": [0.5]},
        lambda data: data | {"blocks": [0, 0]},
        lambda data: data | {"blocks": []},
        lambda data: data | {"block": 0},
        lambda data: data | {"further": 1},
    ],
)
def test_a_damaged_state_is_refused(damage: Callable[[Any], Any], tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    simulate.save_state(HALF, path)
    assert simulate.load_state(path) == HALF
    path.write_text(json.dumps(damage(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")
    with pytest.raises(ValueError, match=r"is no state of a simulation, or is damaged: .* \[IA-X-39\]"):
        simulate.load_state(path)


def test_a_state_of_the_first_version_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text(
        '{"simulation": 1, "seed": 0, "block": 2, "shape": [], "blocks": [0], "totals": ["3"], "products": ["5"]}'
    )
    with pytest.raises(ValueError, match=r"version 1, which does not tell of which sampler it is.* \[IA-X-39\]"):
        simulate.load_state(path)


def test_what_a_closed_form_takes_and_a_simulation_does_not_is_refused() -> None:
    with pytest.raises(TypeError, match=r"`sigma` must be a real number; got ndarray \[IA-X-37\]"):
        simulate.noise_energy(weights_of(3, N), np.ones(3), dim=D)
    with pytest.raises(ValueError, match=r"one mean, with 1 axis; got shape \(3, 8\) \[IA-X-35\]"):
        simulate.signal_energy(weights_of(3, N), mean=np.ones((3, D)))
    with pytest.raises(ValueError, match=r"one mean_x, with 1 axis; got shape \(2, 4\) \[IA-X-35\]"):
        simulate.misalignment_energy(weights_of(2, N), mean_x=np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"one covariance_y, with 2 axes; got shape \(2, 8, 8\) \[IA-X-35\]"):
        simulate.misalignment_snr(weights_of(2, N), covariance_y=np.stack([np.eye(D)] * 2))
    with pytest.raises(ValueError, match=r"weights \(L, N, N\); got shape \(2, 2, 6, 6\) \[IA-X-35\]"):
        simulate.depth_snr(weights_of(2, 2, N, N), 1.0, dim=3)
    with pytest.raises(ValueError, match=r"`dim` must be a positive integer; got 0 \[IA-X-35\]"):
        simulate.depth_snr(weights_of(2, N, N), 1.0, dim=0)


def test_a_precision_that_is_not_reached_gives_what_was_found() -> None:
    block = simulate.run(SAMPLER, blocks=[0]).state.block
    with pytest.raises(simulate.PrecisionError) as caught:
        simulate.run(SAMPLER, precision=1e-4, most=3 * block)
    found = caught.value.result
    assert found is not None and not found.complete and found.samples >= block
    assert found.state == simulate.run(SAMPLER, blocks=sorted(found.state.blocks)).state
    with pytest.raises(simulate.PrecisionError) as again:
        simulate.run(SAMPLER, precision=1e-4, most=3 * block, state=found.state)
    assert again.value.result is not None and again.value.result.samples >= found.samples
    with pytest.raises(simulate.PrecisionError) as never:
        simulate.run(ALIGNED)
    assert never.value.result is None


def test_the_last_block_that_most_allows_is_looked_at() -> None:
    """Block 33 is looked at for that reason alone; so it is in a run that was interrupted before or after it."""
    block = simulate.run(SAMPLER, blocks=[0], block_bytes=2**12).state.block
    whole = simulate.run(SAMPLER, blocks=range(33), block_bytes=2**12)
    part = simulate.run(SAMPLER, blocks=range(32), block_bytes=2**12)
    assert whole.precision < part.precision
    between = (whole.precision + part.precision) / 2
    options = {"precision": between, "block_bytes": 2**12, "most": 33 * block + block // 2}
    for state in (None, part.state, whole.state):
        found = simulate.run(SAMPLER, state=state, **options)
        assert found.complete and found.state == whole.state
    with pytest.raises(simulate.PrecisionError, match=f"allows in blocks of {block} ") as caught:
        simulate.run(SAMPLER, **options | {"precision": 0.999 * whole.precision})
    assert caught.value.result is not None and caught.value.result.state == whole.state


def test_too_few_samples_for_any_precision() -> None:
    state = simulate.run(SAMPLER, blocks=[0], most=200).state
    with pytest.raises(simulate.PrecisionError, match="cannot be told before 256 samples; after 200, a block of 200"):
        simulate.run(SAMPLER, precision=0.5, most=300, state=state)
