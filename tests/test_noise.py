"""The closed forms of the noise theory against expectations taken another way, exactly and without sampling.

An output f(z) that is affine in independent standard normal numbers z has the energy
||f(0)||^2 + sum_k ||f(e_k) - f(0)||^2, e_k the unit vectors: every energy here is computed once more like that, from
the output itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ia_core import attention_weights, indirect_attention, noise
from ia_core.conformance._libraries import from_library, has_device, to_library

N, D, H, M = 5, 6, 3, 2
SEED = 11


def energy(output: Callable[[np.ndarray], np.ndarray], count: int) -> float:
    """E||output(z)||^2 over `count` standard normal numbers, for an output that is affine in them."""
    at_zero = output(np.zeros(count))
    spread = sum(float(np.sum((output(one) - at_zero) ** 2)) for one in np.eye(count))
    return float(np.sum(at_zero**2)) + spread


def draw(*shape: int, seed: int = SEED) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def weights_of(*shape: int) -> np.ndarray:
    scores = np.exp(2 * draw(*shape))
    return scores / scores.sum(axis=-1, keepdims=True)


def covariance_of(d: int, seed: int = SEED) -> np.ndarray:
    factor = draw(d, d, seed=seed)
    return factor @ factor.T / d


def tokens(mean: np.ndarray, covariance: np.ndarray, z: np.ndarray) -> np.ndarray:
    """N independent tokens with that mean and covariance, of N d standard normal numbers."""
    return mean + z.reshape(N, -1) @ np.linalg.cholesky(covariance).T


@pytest.mark.parametrize("projected", [False, True])
def test_energies_of_one_head(projected: bool) -> None:
    a, mean, covariance, spread = weights_of(N), draw(D), covariance_of(D), covariance_of(D, seed=2)
    W = draw(D, 4) if projected else None
    apply = np.eye(D) if W is None else W
    arrays = {"mean": mean, "covariance": covariance}
    noisy = 0.7**2 * energy(lambda z: a @ tokens(np.zeros(D), spread, z) @ apply, N * D)
    clean = energy(lambda z: a @ tokens(mean, covariance, z) @ apply, N * D)
    found = noise.noise_energy(a, 0.7, noise_covariance=spread, projection=W)
    assert found == pytest.approx(noisy, rel=1e-12)
    assert noise.signal_energy(a, **arrays, projection=W) == pytest.approx(clean, rel=1e-12)
    quotient = noise.snr(a, 0.7, **arrays, noise_covariance=spread, projection=W)
    assert quotient == pytest.approx(clean / noisy, rel=1e-12)
    threshold = noise.critical_sigma(a, **arrays, noise_covariance=spread, projection=W)
    assert noise.snr(a, threshold, **arrays, noise_covariance=spread, projection=W) == pytest.approx(1, rel=1e-12)


def pair(z: np.ndarray, joint: np.ndarray, means: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    both = tokens(np.concatenate(means), joint, z)
    return both[:, :D], both[:, D:]


def test_misalignment_of_one_head() -> None:
    a, W, means, joint = weights_of(N), draw(D, 4), (draw(D), draw(D, seed=3)), covariance_of(2 * D)
    arrays = {
        "mean_x": means[0],
        "mean_y": means[1],
        "covariance_x": joint[:D, :D],
        "covariance_y": joint[D:, D:],
        "cross_covariance": joint[:D, D:],
        "projection": W,
    }

    def moved(z: np.ndarray) -> np.ndarray:
        x, y = pair(z, joint, means)
        return a @ (y - x) @ W

    gamma = energy(moved, 2 * N * D)
    clean = energy(lambda z: a @ pair(z, joint, means)[0] @ W, 2 * N * D)
    assert noise.misalignment_energy(a, **arrays) == pytest.approx(gamma, rel=1e-12)
    assert noise.misalignment_snr(a, **arrays) == pytest.approx(clean / gamma, rel=1e-12)
    level = noise.equivalent_sigma(a, noise.misalignment_energy(a, **arrays), projection=W)
    assert noise.noise_energy(a, level, projection=W) == pytest.approx(gamma, rel=1e-12)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 1.0])
def test_misalignment_goes_to_nothing_as_the_sequences_become_one(correlation: float) -> None:
    a, eye = weights_of(N), np.eye(D)
    gamma = noise.misalignment_energy(a, covariance_x=eye, covariance_y=eye, cross_covariance=correlation * eye)
    assert gamma == pytest.approx((1 - correlation) * noise.misalignment_energy(a, dim=D), abs=1e-15)


@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("outputs", [False, True])
def test_energies_of_several_heads(values: bool, outputs: bool) -> None:
    a, means, joint = weights_of(H, M, N), (draw(D), draw(D, seed=3)), covariance_of(2 * D)
    W = draw(D, 3 * H) if values else None
    output_map = draw(3 * H if values else D, 4) if outputs else None
    projections = {"value_projection": W, "output_projection": output_map}
    covariance = joint[:D, :D]

    def output(x: np.ndarray, row: int) -> np.ndarray:
        projected = x if W is None else x @ W
        heads = [a[h, row] @ part for h, part in enumerate(np.split(projected, H, axis=-1))]
        return np.concatenate(heads) if output_map is None else np.concatenate(heads) @ output_map

    for row in range(M):
        clean = energy(lambda z, r=row: output(tokens(means[0], covariance, z), r), N * D)
        noisy = energy(lambda z, r=row: output(0.7 * tokens(np.zeros(D), covariance, z), r), N * D)
        gamma = energy(lambda z, r=row: np.subtract(*(output(p, r) for p in pair(z, joint, means))), 2 * N * D)
        of_x = {"mean": means[0], "covariance": covariance}
        of_both = {
            "mean_x": means[0],
            "mean_y": means[1],
            "covariance_x": covariance,
            "covariance_y": joint[D:, D:],
            "cross_covariance": joint[:D, D:],
        }
        near = {"rel": 1e-11}
        assert noise.multi_head_signal_energy(a, **of_x, **projections)[row] == pytest.approx(clean, **near)
        found = noise.multi_head_noise_energy(a, 0.7, noise_covariance=covariance, **projections)
        assert found[row] == pytest.approx(noisy, **near)
        quotient = noise.multi_head_snr(a, 0.7, **of_x, noise_covariance=covariance, **projections)
        assert quotient[row] == pytest.approx(clean / noisy, **near)
        level = noise.multi_head_critical_sigma(a, **of_x, noise_covariance=covariance, **projections)
        assert level[row] == pytest.approx(0.7 * np.sqrt(clean / noisy), **near)
        assert noise.multi_head_misalignment_energy(a, **of_both, **projections)[row] == pytest.approx(gamma, **near)
        of_gamma = noise.multi_head_misalignment_snr(a, **of_both, **projections)
        assert of_gamma[row] == pytest.approx(clean / gamma, **near)


def test_one_head_is_several_heads_of_one() -> None:
    a, mean = weights_of(1, M, N), draw(D)
    one, several = noise.critical_sigma(a[0], mean=mean), noise.multi_head_critical_sigma(a, mean=mean)
    np.testing.assert_allclose(one, several, rtol=1e-14)


def test_the_bound_holds_for_every_sample_and_is_met_by_one_hot_weights() -> None:
    a, W = weights_of(200, N), draw(D, 4)
    eps = draw(200, N, D)
    moved = np.linalg.norm(np.einsum("sn,snd,de->se", a, eps, W), axis=-1)
    assert np.all(moved <= noise.noise_bound(a, eps, projection=W) * (1 + 1e-14))
    one_hot = np.eye(N)
    moved = np.linalg.norm(one_hot @ eps[0], axis=-1)
    np.testing.assert_allclose(moved, noise.noise_bound(one_hot, np.broadcast_to(eps[0], (N, N, D))), rtol=1e-14)


@pytest.mark.parametrize("what", ["key", "query"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_noise_of_keys_and_queries_is_the_jacobian_of_attention(what: str, scale: float | None) -> None:
    """To first order the energy is sigma^2 times the square of the Jacobian, here by central differences."""
    query, key, value = draw(1, M, D), draw(1, N, D), draw(1, N, 4)
    weights = attention_weights(query, key, scale=scale)
    step = 1e-5
    inputs = {"query": query, "key": key}
    squares = np.zeros((1, M))
    for at in np.ndindex(inputs[what].shape):
        off = np.zeros_like(inputs[what])
        off[at] = step
        ahead, back = (
            indirect_attention(value=value, scale=scale, **inputs | {what: inputs[what] + s * off}) for s in (1, -1)
        )
        squares += np.sum(((ahead - back) / (2 * step)) ** 2, axis=-1)
    other = query if what == "key" else key
    found = getattr(noise, f"{what}_noise_energy")(weights, other, value, 0.1, scale=scale)
    np.testing.assert_allclose(found, 0.01 * squares, rtol=1e-8)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
def test_a_temperature_divides_the_scores(temperature: float) -> None:
    scores = draw(M, N)
    at_one, wanted = (np.exp(scores / t) / np.exp(scores / t).sum(-1, keepdims=True) for t in (1, temperature))
    np.testing.assert_allclose(noise.tempered_weights(at_one, temperature), wanted, rtol=1e-12)
    np.testing.assert_allclose(noise.tempered_weights(at_one, np.full(M, temperature)), wanted, rtol=1e-12)
    np.testing.assert_array_equal(noise.tempered_weights(np.eye(N), temperature), np.eye(N))


def test_without_normalisation_depth_is_the_expectation_over_all_signs() -> None:
    """With W_l = s_l I, s_l = +-1 with equal chance, the mean over all signs is taken without sampling."""
    layers, m, sigma = 3, 0.5, 0.8
    A = weights_of(layers, N, N)
    signal, noisy = np.zeros(N), np.zeros(N)
    for signs in np.ndindex(*(2,) * layers):
        through = np.eye(N)
        for sign, one in zip(signs, A, strict=True):
            through = through + (2 * sign - 1) * one @ through
        signal += np.diag(through @ (np.eye(N) + m) @ through.T) / 2**layers
        noisy += sigma**2 * np.diag(through @ through.T) / 2**layers
    found = noise.depth_snr(A, sigma, mean_square=m)
    np.testing.assert_allclose(found[-1], signal / noisy, rtol=1e-12)
    np.testing.assert_allclose(found[0], (1 + m) / sigma**2, rtol=1e-12)
    assert noise.depth_snr(A[None], sigma).shape == (1, layers + 1, N)


CALLS: dict[str, Callable[..., Any]] = {
    "critical_sigma": lambda put: noise.critical_sigma(put(weights_of(H, M, N)), mean=put(draw(D))),
    "misalignment_snr": lambda put: noise.misalignment_snr(
        put(weights_of(M, N)), mean_y=put(draw(D)), covariance_x=put(covariance_of(D)), projection=put(draw(D, 4))
    ),
    "equivalent_sigma": lambda put: noise.equivalent_sigma(
        put(weights_of(M, N)), noise.misalignment_energy(put(weights_of(M, N)), dim=D), dim=D
    ),
    "multi_head": lambda put: noise.multi_head_misalignment_energy(
        put(weights_of(2, H, M, N)), mean_x=put(draw(2, D)), covariance_y=put(covariance_of(D))
    ),
    "paper": lambda put: noise.multi_head_misalignment_energy(
        put(weights_of(H, M, N)), mean_x=put(draw(D)), value_projection=put(draw(D, H * 2)), form="paper"
    ),
    "key": lambda put: noise.key_noise_energy(put(weights_of(H, M, N)), put(draw(H, M, D)), put(draw(H, N, 4)), 0.1),
    "query": lambda put: noise.query_noise_energy(
        put(weights_of(H, M, N)), put(draw(H, N, D)), put(draw(H, N, 4)), 0.1
    ),
    "bound": lambda put: noise.noise_bound(put(weights_of(M, N)), put(draw(M, N, D))),
    "tempered": lambda put: noise.tempered_weights(put(weights_of(M, N)), 0.5),
    "depth": lambda put: noise.depth_snr(put(weights_of(2, N, N)), 0.5, mean_square=1.0, gain=0.7),
}


@pytest.mark.parametrize("library", ["torch", "jax", "array_api_strict", "cupy"])
@pytest.mark.parametrize("name", CALLS)
def test_every_library_gives_the_same(name: str, library: str) -> None:
    if not has_device(library):
        pytest.skip(f"{library} is not installed, or has no device (CuPy needs a GPU)")
    wanted = CALLS[name](lambda array: array)
    found, dtype = from_library(CALLS[name](lambda array: to_library(array, library)))
    assert dtype == "float64"
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_thresholds_can_be_differentiated_compiled_and_mapped() -> None:
    """The gradient of sigma* in the weights, by JAX and PyTorch, against differences."""
    jax, torch = pytest.importorskip("jax"), pytest.importorskip("torch")
    jax.config.update("jax_enable_x64", True)
    scores, mean, step = draw(N), draw(D), 1e-6

    def level(xp: Any, s: Any, m: Any) -> Any:
        raised = xp.exp(s)
        return noise.critical_sigma(raised / raised.sum(), mean=m)

    wanted = [
        (level(np, scores + step * one, mean) - level(np, scores - step * one, mean)) / (2 * step) for one in np.eye(N)
    ]
    by_jax = jax.jit(jax.grad(lambda s: level(jax.numpy, s, jax.numpy.asarray(mean))))(jax.numpy.asarray(scores))
    np.testing.assert_allclose(by_jax, wanted, rtol=1e-7)
    mapped = jax.vmap(lambda w: noise.effective_tokens(w))(jax.numpy.asarray(weights_of(M, N)))
    np.testing.assert_allclose(mapped, noise.effective_tokens(weights_of(M, N)), rtol=1e-12)
    leaf = torch.asarray(scores, requires_grad=True)
    level(torch, leaf, torch.asarray(mean)).backward()
    np.testing.assert_allclose(leaf.grad, wanted, rtol=1e-7)
    over = torch.func.vmap(noise.effective_tokens)(torch.asarray(weights_of(M, N)))
    np.testing.assert_allclose(over, noise.effective_tokens(weights_of(M, N)), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_weights_rounded_to_a_narrow_dtype_are_still_weights(dtype: str) -> None:
    from ia_core.conformance._libraries import numpy_dtype

    a = weights_of(50, 300)
    narrow = a.astype(numpy_dtype(dtype))
    found = noise.effective_tokens(narrow)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, noise.effective_tokens(a), rtol=0.02)


A, HEADS = weights_of(M, N), weights_of(H, M, N)
ONE_HOT, HEADS_ONE_HOT = np.eye(N), np.stack([np.eye(N)] * H)
ORTHONORMAL = np.linalg.qr(draw(D, D))[0]
# Variances of 1, but not independent of each other.
CORRELATED = np.full((D, D), 0.9) + 0.1 * np.eye(D)
SPREAD = [
    {"mean": np.ones(D)},
    {"covariance": 2 * np.eye(D)},
    {"covariance": CORRELATED, "projection": draw(D, 4)},
    {"noise_covariance": 3 * np.eye(D)},
]
HEADS_SPREAD = [*SPREAD[:2], {"covariance": CORRELATED, "value_projection": draw(D, D)}, SPREAD[3]]
ONE_WIDE = [
    {"dim": 3},
    {"mean_x": np.ones(1)},
    {"covariance_y": np.full((1, 1), 2.0)},
    {"cross_covariance": np.full((1, 1), 0.5)},
]
# Of each paper's form: keywords inside of its condition, and outside, one for each part of the condition.
PAPER: dict[str, tuple[Callable[..., Any], dict[str, Any], list[dict[str, Any]]]] = {
    "signal_energy": (
        lambda **k: noise.signal_energy(A, **k),
        {"projection": ORTHONORMAL},
        [
            {"mean": np.ones(D)},
            {"covariance": 2 * np.eye(D)},
            {"covariance": CORRELATED, "projection": draw(D, 4)},
            {"projection": draw(D, 4)},
        ],
    ),
    "snr": (
        lambda **k: noise.snr(A, 0.7, **k),
        {"projection": draw(D, 4)},
        SPREAD,
    ),
    "multi_head_noise_energy": (
        lambda **k: noise.multi_head_noise_energy(HEADS, 0.7, **k),
        {"value_projection": ORTHONORMAL, "output_projection": ORTHONORMAL.T.copy()},
        [
            {"noise_covariance": 2 * np.eye(D)},
            {"value_projection": draw(D, D)},
            {"output_projection": draw(D, D), "dim": D},
        ],
    ),
    "multi_head_signal_energy": (
        lambda **k: noise.multi_head_signal_energy(HEADS, **k),
        {"value_projection": ORTHONORMAL},
        [{"mean": np.ones(D)}, {"covariance": 2 * np.eye(D)}, {"value_projection": draw(D, D)}],
    ),
    "multi_head_snr": (
        lambda **k: noise.multi_head_snr(HEADS, 0.7, **k),
        {"value_projection": draw(D, D)},
        HEADS_SPREAD,
    ),
    "multi_head_critical_sigma": (
        lambda **k: noise.multi_head_critical_sigma(HEADS, **k),
        {"value_projection": draw(D, D)},
        HEADS_SPREAD,
    ),
    "critical_sigma": (lambda **k: noise.critical_sigma(A, **k), {"projection": draw(D, 4)}, SPREAD),
    "noise_energy": (
        lambda **k: noise.noise_energy(A, 0.7, **k),
        {"projection": ORTHONORMAL},
        [{"noise_covariance": 2 * np.eye(D)}, {"projection": draw(D, 4)}],
    ),
    "misalignment_energy": (
        lambda weights=ONE_HOT, **k: noise.misalignment_energy(weights, **k),
        {"projection": ORTHONORMAL, "mean_y": np.full(D, 2.0)},
        [
            {"dim": D, "weights": A},
            {"covariance_x": 2 * np.eye(D)},
            {"covariance_y": 2 * np.eye(D)},
            {"cross_covariance": 0.5 * np.eye(D)},
            {"projection": draw(D, 4)},
        ],
    ),
    "multi_head_misalignment_energy": (
        lambda weights=HEADS_ONE_HOT, **k: noise.multi_head_misalignment_energy(weights, **k),
        {"value_projection": ORTHONORMAL, "output_projection": ORTHONORMAL.T.copy()},
        [
            {"dim": D, "weights": HEADS},
            {"mean_y": np.ones(D)},
            {"covariance_x": 2 * np.eye(D)},
            {"covariance_y": 2 * np.eye(D)},
            {"cross_covariance": 0.5 * np.eye(D)},
            {"value_projection": draw(D, D)},
        ],
    ),
    # One-hot weights, and outputs of energy 1.
    "misalignment_snr": (
        lambda weights=ONE_HOT, **k: noise.misalignment_snr(weights, **k),
        {"mean_y": np.full(1, 2.0)},
        [{"weights": A, "mean_y": np.full(1, 2.0)}, *ONE_WIDE],
    ),
    "multi_head_misalignment_snr": (
        lambda weights=HEADS_ONE_HOT[:1], **k: noise.multi_head_misalignment_snr(weights, **k),
        {"mean_y": np.full(1, 2.0)},
        [{"weights": HEADS[:1], "mean_y": np.full(1, 2.0)}, *ONE_WIDE],
    ),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_form_agrees_inside_its_condition_and_differs_outside(name: str) -> None:
    call, inside, outside = PAPER[name]
    np.testing.assert_allclose(call(**inside, form="paper"), call(**inside), rtol=1e-12)
    for keywords in outside:
        assert np.all(np.abs(call(**keywords, form="paper") / call(**keywords) - 1) > 0.05), keywords


def test_what_the_papers_forms_are() -> None:
    S2 = np.sum(HEADS**2, axis=(0, 2))
    mean = {"mean": np.ones(D)}
    np.testing.assert_allclose(noise.multi_head_noise_energy(HEADS, 0.7, dim=D, form="paper"), 0.49 * D / H * S2)
    np.testing.assert_allclose(noise.multi_head_signal_energy(HEADS, **mean, form="paper"), D / H * S2)
    np.testing.assert_allclose(noise.multi_head_snr(HEADS, 0.7, **mean, form="paper"), [1 / 0.49] * M)
    np.testing.assert_allclose(noise.multi_head_critical_sigma(HEADS, **mean, form="paper"), [1.0] * M)
    np.testing.assert_allclose(noise.snr(A, 0.7, **mean, form="paper"), [1 / 0.49] * M)
    shift = {"mean_y": np.ones(D)}
    np.testing.assert_allclose(noise.misalignment_snr(A, **shift, form="paper"), [1 / (2 * D + D)] * M)
    several = noise.multi_head_misalignment_snr(HEADS, **shift, form="paper")
    np.testing.assert_allclose(several, [1 / (2 * D + D / H)] * M)
