"""What the noise theory refuses, with the whole text of each error; and which leading axes go together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ia_core import noise, simulate

from .error_texts import NOISE_TEXTS
from .test_noise import HEADS, A, D, H, M, N, covariance_of, draw, weights_of

EYE = np.eye(2)
NAN, SCORES = np.asarray([np.nan, 1.0]), np.ones((H, N, 2))
# Each with its full text in error_texts.py.
ERRORS: dict[str, Callable[[], Any]] = {
    "negative": lambda: noise.effective_tokens(np.asarray([1.5, -0.5])),
    "sum": lambda: noise.effective_tokens(np.asarray([0.5, 0.4])),
    "nan": lambda: noise.effective_tokens(NAN),
    "no axis": lambda: noise.effective_tokens(np.asarray(1.0)),
    "integers": lambda: noise.effective_tokens(np.asarray([1, 0])),
    "no width": lambda: noise.critical_sigma(A),
    "widths": lambda: noise.signal_energy(A, mean=np.ones(3), covariance=np.eye(4)),
    "dim": lambda: noise.noise_energy(A, 1.0, dim=0),
    "noise": lambda: noise.noise_bound(A, np.ones((M, 3, D))),
    "flat mean": lambda: noise.signal_energy(A, mean=np.asarray(1.0)),
    "no mean": lambda: noise.signal_energy(A, mean=np.ones(0)),
    "not square": lambda: noise.signal_energy(A, covariance=np.ones((2, 3))),
    "cross": lambda: noise.misalignment_energy(A, cross_covariance=np.ones((2, 3))),
    "asymmetric": lambda: noise.signal_energy(A, covariance=np.asarray([[1.0, 0.5], [0.4, 1.0]])),
    "indefinite": lambda: noise.signal_energy(A, covariance=np.asarray([[1.0, 2.0], [2.0, 1.0]])),
    "one of two": lambda: noise.signal_energy(A, covariance=np.stack([1e16 * EYE, [[1.0, 2.0], [2.0, 1.0]]])),
    "lopsided": lambda: noise.signal_energy(A, covariance=np.stack([1e16 * EYE, [[1.0, 0.5], [0.4, 1.0]]])),
    "more than correlated": lambda: noise.misalignment_energy(A, cross_covariance=1.5 * EYE),
    "sigma": lambda: noise.noise_energy(A, -1.0, dim=2),
    "sigmas": lambda: noise.noise_energy(A, NAN, dim=2),
    "word": lambda: noise.noise_energy(A, "1", dim=2),
    "temperature": lambda: noise.tempered_weights(A, 0),
    "form": lambda: noise.snr(A, 1.0, dim=2, form="papers"),
    "form of signal": lambda: noise.multi_head_signal_energy(HEADS, dim=6, form="papers"),
    "form of misalignment": lambda: noise.misalignment_snr(A, dim=6, form="papers"),
    "normalisation": lambda: simulate.depth_snr(weights_of(2, N, N), 1.0, dim=4, normalisation="both"),
    "depth": lambda: noise.depth_snr(HEADS, 1.0),
    "heads": lambda: noise.head_overlaps(A),
    "head width": lambda: noise.multi_head_noise_energy(HEADS, 1.0, dim=7),
    "output": lambda: noise.multi_head_noise_energy(HEADS, 1.0, dim=6, output_projection=np.ones((5, 2))),
    "queries": lambda: noise.key_noise_energy(A, np.ones((3, D)), np.ones((N, 2)), 0.1),
    # Leading axes: those of the weights, or fewer.
    "means": lambda: noise.signal_energy(A, mean=np.ones((3, D))),
    "covariances": lambda: noise.signal_energy(A, covariance=np.stack([EYE] * 3)),
    "more axes": lambda: noise.noise_energy(A, np.ones((4, M)), dim=3),
    "other axes": lambda: noise.noise_energy(A, np.ones(3), dim=3),
    "projections": lambda: noise.noise_energy(A, 1.0, projection=np.ones((7, 3, 2))),
    "temperatures": lambda: noise.tempered_weights(A, np.ones(3)),
    "noises": lambda: noise.noise_bound(A, np.ones((3, N, 4))),
    "energies": lambda: noise.equivalent_sigma(A, np.ones(3), dim=2),
    "queries of heads": lambda: noise.key_noise_energy(HEADS, np.ones((4, M, D)), SCORES, 0.1),
    "grouped values": lambda: noise.query_noise_energy(HEADS, SCORES, np.ones((2, N, 2)), 0.1),
    "means of heads": lambda: noise.multi_head_signal_energy(HEADS, mean=np.ones((H, D))),
    "sigmas of heads": lambda: noise.multi_head_noise_energy(HEADS, np.ones((H, M)), dim=D),
    "value projections": lambda: noise.multi_head_snr(HEADS, 1.0, value_projection=np.ones((2, D, D))),
    # Values.
    "nan mean": lambda: noise.signal_energy(A, mean=NAN),
    "nan covariance": lambda: noise.signal_energy(A, covariance=np.nan * EYE),
    "nan cross": lambda: noise.misalignment_energy(A, cross_covariance=np.nan * EYE),
    "nan projection": lambda: noise.noise_energy(A, 1.0, projection=np.nan * EYE),
    "inf shift": lambda: noise.multi_head_misalignment_snr(HEADS, mean_y=np.full(D, np.inf)),
    "negative energy": lambda: noise.equivalent_sigma(A, np.asarray([-1.0, 1.0]), dim=2),
    "list of energies": lambda: noise.equivalent_sigma(A, [1.0, 1.0], dim=2),
}


def test_there_is_a_text_for_every_error() -> None:
    assert list(ERRORS) == list(NOISE_TEXTS)


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_refused(name: str) -> None:
    kind = {"no width": TypeError, "integers": TypeError, "word": TypeError, "list of energies": TypeError}
    with pytest.raises((ValueError, TypeError)) as caught:
        ERRORS[name]()
    assert str(caught.value) == NOISE_TEXTS[name]
    assert type(caught.value) is kind.get(name, ValueError)


def test_what_traces_is_not_looked_at_and_its_axes_are() -> None:
    jax = pytest.importorskip("jax")
    found = jax.jit(lambda m: noise.signal_energy(jax.numpy.asarray(A), mean=m))(jax.numpy.asarray(NAN))
    assert np.all(np.isnan(found))
    with pytest.raises(ValueError, match=r"`mean` must have leading axes that broadcast to \(2,\)"):
        jax.jit(lambda m: noise.signal_energy(jax.numpy.asarray(A), mean=m))(jax.numpy.ones((3, D)))


def test_leading_axes_broadcast_to_those_of_the_weights() -> None:
    """Row by row: what has one value for each row of the weights, and what has one for several."""
    a, mean, sigma = weights_of(3, M, N), draw(3, 1, D), np.asarray([0.5, 2.0])
    covariance = np.stack([covariance_of(D, seed=n) for n in range(M)])
    found = noise.snr(a, sigma, mean=mean, covariance=covariance)
    at_one = noise.tempered_weights(a, np.asarray([[0.5], [1.0], [2.0]]))
    assert found.shape == (3, M)
    for i, j in np.ndindex(3, M):
        alone = noise.snr(a[i, j], sigma[j], mean=mean[i, 0], covariance=covariance[j])
        assert found[i, j] == pytest.approx(alone, rel=1e-13)
        np.testing.assert_allclose(at_one[i, j], noise.tempered_weights(a[i, j], 0.5 * 2.0**i), rtol=1e-13)
    several = noise.multi_head_snr(weights_of(3, H, M, N), sigma, mean=mean[:, 0])
    for i in range(3):
        alone = noise.multi_head_snr(weights_of(3, H, M, N)[i], sigma, mean=mean[i, 0])
        np.testing.assert_allclose(several[i], alone, rtol=1e-13)


def test_a_misalignment_that_rounds_below_zero_is_zero() -> None:
    x = np.asarray([[0.1, 0.0], [0.0, 0.7]])
    gamma = noise.misalignment_energy(A, covariance_x=x, covariance_y=x, cross_covariance=x * (1 + 2.0**-51))
    assert np.all(gamma == 0)
    assert np.all(noise.equivalent_sigma(A, gamma, dim=2) == 0)


def test_two_libraries_do_not_mix() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="`weights` and `mean` are on different libraries"):
        noise.signal_energy(A, mean=torch.ones(3))
