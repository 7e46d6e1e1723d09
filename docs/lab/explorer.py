"""The noise threshold explorer: what noise in the values, or values of another sequence, does to one query's output.

Everything is a closed form of ia_core.noise, next to a measurement on drawn tokens. The weights fall by the same factor
from token to token, a_i ~ (1 - sharpness)^i, the softmax of scores that fall by a constant. That takes no exponential,
and all else are sums, products, quotients and roots in a fixed order: so the browser and any other machine find the
same numbers, to the last bit. Only the places in the drawing take logarithms.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from ia_core import noise

from .controls import Slider, read_sliders
from .explorer_figure import draw
from .fragments import number, table, with_error

__all__ = ["SLIDERS", "Measured", "Setting", "Theory", "measure", "respond", "theory", "weights_of"]

SLIDERS = (
    Slider("sigma", "noise level σ", 0.05, 5.0, 0.05, 1.0),
    Slider("n", "tokens n", 1, 256, 1, 64),
    Slider("d", "width d", 1, 256, 1, 64),
    Slider("sharpness", "sharpness of the weights", 0.0, 1.0, 0.01, 0.1),
    Slider("mean", "mean of each component", 0.0, 2.0, 0.05, 0.5),
    Slider("shift", "mean shift of the other sequence", 0.0, 2.0, 0.05, 1.0),
)
# Noise levels of the curve: rounded, so that no machine's logarithm has a say in them.
LEVELS = tuple(round(0.05 * 10 ** (k / 20), 4) for k in range(41))
DRAWS, SEED = 2**20, 20  # numbers in each of the two pools, shared by n d numbers for each sample
FEWEST, MOST = 16, 512  # samples: DRAWS is FEWEST times the largest n d


class Setting(NamedTuple):
    """Where the sliders stand."""

    sigma: float
    n: int
    d: int
    sharpness: float
    mean: float
    shift: float


class Theory(NamedTuple):
    """Closed forms, each with what the paper has in its place."""

    n_eff: float
    sigma_star: float
    snr: float
    signal: float
    noise: float
    gamma: float
    gamma_paper: float
    snr_misaligned: float
    snr_misaligned_paper: float
    sigma_equivalent: float
    curve: tuple[float, ...]


class Measured(NamedTuple):
    """Means over samples, and their standard errors."""

    samples: int
    snr: float
    snr_error: float
    gamma: float
    gamma_error: float
    snr_misaligned: float
    snr_misaligned_error: float


def weights_of(setting: Setting) -> np.ndarray:
    """Attention weights of one query: uniform at sharpness 0, one-hot at 1; of shape (n,)."""
    factors = np.full(setting.n, 1.0 - setting.sharpness)
    factors[0] = 1.0
    powers = np.cumprod(factors)
    return powers / np.sum(powers)


def theory(setting: Setting) -> Theory:
    """The closed forms at a setting."""
    a, d = weights_of(setting), setting.d
    mean_x = np.full(d, setting.mean)
    mean_y = np.full(d, setting.mean + setting.shift)
    both = {"mean_x": mean_x, "mean_y": mean_y}
    gamma = noise.misalignment_energy(a, **both)
    levels = np.asarray((setting.sigma, *LEVELS))
    curve = noise.snr(np.broadcast_to(a, (levels.size, a.size)), levels, mean=mean_x)
    numbers = (
        noise.effective_tokens(a),
        noise.critical_sigma(a, mean=mean_x),
        curve[0],
        noise.signal_energy(a, mean=mean_x),
        noise.noise_energy(a, setting.sigma, dim=d),
        gamma,
        noise.misalignment_energy(a, **both, form="paper"),
        noise.misalignment_snr(a, **both),
        noise.misalignment_snr(a, **both, form="paper"),
        noise.equivalent_sigma(a, gamma, dim=d),
    )
    return Theory(*(float(one) for one in numbers), tuple(float(one) for one in curve[1:]))


def measure(setting: Setting) -> Measured:
    """The same energies, of drawn tokens that are attended to one sample after the other.

    Noise and the other sequence use the same draws: each is compared with the tokens, never with the other.
    """
    of_tokens, of_others = _attended(setting.n, setting.d, setting.sharpness)  # (samples, d)
    signal = _energies(of_tokens + setting.mean)
    noisy = _energies(setting.sigma * of_others)
    moved = _energies(of_others - of_tokens + setting.shift)
    snr, misaligned = _ratio(signal, noisy), _ratio(signal, moved)
    gamma = float(np.mean(moved))
    error = float(np.sqrt(np.mean((moved - gamma) ** 2) / (moved.size - 1)))
    return Measured(signal.size, *snr, gamma, error, *misaligned)


def respond(state: dict[str, Any]) -> dict[str, Any]:
    """What the page shows for the sliders' values, by the names of its parts."""
    setting = Setting(**read_sliders(SLIDERS, state))
    found, seen = theory(setting), measure(setting)
    return {
        "figure": draw(setting, found, seen, LEVELS, weights_of(setting)),
        "table": _table(setting, found, seen),
        "summary": _summary(setting, found),
        "values": {"theory": found._asdict(), "measured": seen._asdict()},
    }


@functools.cache
def _pools() -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.random.default_rng(SEED).standard_normal((2, DRAWS)))


@functools.lru_cache(maxsize=2)
def _attended(n: int, d: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """sum_i a_i z_i of the draws of either pool, each of shape (samples, d)."""
    a = weights_of(Setting(0.0, n, d, sharpness, 0.0, 0.0))
    samples = min(max(DRAWS // (n * d), FEWEST), MOST)
    drawn = (pool[: samples * n * d].reshape(samples, n, d) for pool in _pools())
    # A sum of products, and no matrix product: libraries for those add in an order of their own.
    return tuple(np.sum(a[:, None] * z, axis=1) for z in drawn)


def _energies(outputs: np.ndarray) -> np.ndarray:
    return np.sum(outputs * outputs, axis=-1)


def _ratio(above: np.ndarray, below: np.ndarray) -> tuple[float, float]:
    """The quotient of two means, and its standard error to first order."""
    ratio = np.mean(above) / np.mean(below)
    spread = (above - ratio * below) / np.mean(below)
    return float(ratio), float(np.sqrt(np.mean(spread * spread) / (above.size - 1)))


def _table(setting: Setting, found: Theory, seen: Measured) -> str:
    paper_snr = number(1 / setting.sigma**2)
    rows = [
        ("effective tokens n_eff", number(found.n_eff), "", ""),
        ("threshold σ*", number(found.sigma_star), "1", ""),
        ("SNR under noise σ", number(found.snr), paper_snr, with_error(seen.snr, seen.snr_error)),
        (
            "misalignment energy γ",
            number(found.gamma),
            number(found.gamma_paper),
            with_error(seen.gamma, seen.gamma_error),
        ),
        (
            "SNR under misalignment",
            number(found.snr_misaligned),
            number(found.snr_misaligned_paper),
            with_error(seen.snr_misaligned, seen.snr_misaligned_error),
        ),
        ("equivalent noise level", number(found.sigma_equivalent), "", ""),
    ]
    return table(("", "exact", "the paper", f"measured, {seen.samples} samples"), rows)


def _summary(setting: Setting, found: Theory) -> str:
    side = "above" if found.snr > 1 else "below" if found.snr < 1 else "at"
    return (
        f"At σ = {number(setting.sigma)} the SNR is {number(found.snr)}, {side} the threshold of 1; signal and noise "
        f"are equal at σ* = {number(found.sigma_star)}. The weights spread over n_eff = {number(found.n_eff)} of "
        f"{setting.n} tokens. Values of another sequence leave an SNR of {number(found.snr_misaligned)}, as noise of "
        f"σ = {number(found.sigma_equivalent)} would."
    )
