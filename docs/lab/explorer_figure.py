"""The drawing of the noise threshold explorer: SNR against the noise level, the weights, and the energies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .fragments import circle, number, path, rect, svg, text

__all__ = ["draw"]

WIDTH, HEIGHT = 400, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 34, 40
LOWEST, HIGHEST = 1e-2, 1e4  # of the axis of SNR


def draw(setting: Any, found: Any, seen: Any, levels: tuple[float, ...], weights: np.ndarray) -> str:
    """Three drawings, one after the other."""
    return "".join(
        (
            _snr(setting, found, seen, levels),
            _weights(found, weights),
            _energies(found, seen),
        )
    )


def _place(sigma: float, snr: float, levels: tuple[float, ...]) -> tuple[float, float]:
    """Where a point of the first drawing lies; what is outside lies on the rim."""
    inside = min(max(sigma, levels[0]), levels[-1])
    x = math.log(inside / levels[0]) / math.log(levels[-1] / levels[0])
    y = math.log(min(max(snr, LOWEST), HIGHEST) / LOWEST) / math.log(HIGHEST / LOWEST)
    return LEFT + x * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y * (HEIGHT - TOP - BOTTOM)


def _snr(setting: Any, found: Any, seen: Any, levels: tuple[float, ...]) -> str:
    def at(sigma: float, snr: float) -> tuple[float, float]:
        return _place(sigma, snr, levels)

    parts = [text(LEFT, 16, "signal-to-noise ratio against σ", "lab-title")]
    for snr in (0.01, 0.1, 1, 10, 100, 1000, 10000):
        x, y = at(levels[0], snr)
        parts += [path([(x, y), (WIDTH - RIGHT, y)], "lab-grid"), text(x - 5, y + 4, f"{snr:g}", "lab-tick", "end")]
    for sigma in (0.05, 0.1, 0.2, 0.5, 1, 2, 5):
        x, y = at(sigma, LOWEST)
        parts += [path([(x, y), (x, TOP)], "lab-grid"), text(x, y + 15, f"{sigma:g}", "lab-tick", "middle")]
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "noise level σ", "lab-axis", "middle"))
    parts.append(path([at(levels[0], 1), at(levels[-1], 1)], "lab-threshold"))
    parts.append(path([at(sigma, 1 / sigma**2) for sigma in levels], "lab-paper"))
    parts.append(path([at(levels[0], found.snr_misaligned), at(levels[-1], found.snr_misaligned)], "lab-other"))
    parts.append(path([at(*point) for point in zip(levels, found.curve, strict=True)], "lab-exact"))
    star = at(found.sigma_star, 1)
    parts.append(rect(star[0] - 4, star[1] - 4, 8, 8, "lab-star"))
    low, high = (max(seen.snr + side * seen.snr_error, LOWEST) for side in (-1.96, 1.96))
    parts.append(path([at(setting.sigma, low), at(setting.sigma, high)], "lab-error"))
    parts.append(circle(*at(setting.sigma, seen.snr), 4.5, "lab-dot"))
    parts += _legend(found)
    label = (
        f"SNR falls with the noise level. Exact {number(found.snr)} and measured {number(seen.snr)} at "
        f"σ = {number(setting.sigma)}; it crosses 1 at σ = {number(found.sigma_star)}."
    )
    return svg(WIDTH, HEIGHT, label, parts, "lab-wide")


def _legend(found: Any) -> list[str]:
    lines = (
        ("lab-exact", "exact"),
        ("lab-paper", "the paper, 1/σ²"),
        ("lab-other", "misaligned values"),
        ("lab-threshold", "SNR = 1"),
    )
    x, parts = WIDTH - RIGHT - 142, []
    parts.append(rect(x - 8, TOP + 4, 148, 92, "lab-box"))
    for k, (kind, words) in enumerate(lines):
        y = TOP + 17 + 15 * k
        parts += [path([(x, y), (x + 22, y)], kind), text(x + 28, y + 4, words, "lab-tick")]
    y = TOP + 17 + 15 * len(lines)
    parts += [circle(x + 5, y, 4, "lab-dot"), text(x + 14, y + 4, "measured", "lab-tick")]
    parts += [rect(x + 76, y - 4, 8, 8, "lab-star")]
    parts.append(text(x + 89, y + 4, f"σ* = {number(found.sigma_star)}", "lab-tick"))
    return parts


def _weights(found: Any, weights: np.ndarray) -> str:
    width, height, floor = 400, 150, 118
    top = float(weights[0])  # the largest, as they fall
    step = (width - LEFT - RIGHT) / weights.size
    outline = [(LEFT, floor)]
    for k, weight in enumerate(weights.tolist()):
        y = floor - (floor - 34) * weight / top
        outline += [(LEFT + k * step, y), (LEFT + (k + 1) * step, y)]
    parts = [
        text(LEFT, 16, f"attention weights, n_eff = {number(found.n_eff)}", "lab-title"),
        path([*outline, (width - RIGHT, floor)], "lab-area", closed=True),
        path([(LEFT, floor), (width - RIGHT, floor)], "lab-grid"),
        text(LEFT - 5, 38, number(top, 2), "lab-tick", "end"),
        text(LEFT - 5, floor + 4, "0", "lab-tick", "end"),
        text(LEFT, floor + 16, "1", "lab-tick", "middle"),
        text(width - RIGHT, floor + 16, str(weights.size), "lab-tick", "end"),
        text((LEFT + width - RIGHT) / 2, height - 4, "token", "lab-axis", "middle"),
    ]
    return svg(width, height, f"Weights of {weights.size} tokens; the largest is {number(top, 2)}.", parts)


def _energies(found: Any, seen: Any) -> str:
    width, height, x0 = 400, 150, 120
    bars = (
        ("signal", found.signal, "lab-bar-signal", None),
        ("noise at σ", found.noise, "lab-bar-noise", None),
        ("misalignment γ", found.gamma, "lab-bar-other", seen),
        ("γ of the paper", found.gamma_paper, "lab-bar-paper", None),
    )
    longest = max(value for _, value, _, _ in bars)
    parts = [text(LEFT, 16, "energy in the output", "lab-title")]
    for k, (name, value, kind, measured) in enumerate(bars):
        y, length = 30 + 30 * k, (width - x0 - 70) * value / longest
        parts += [text(x0 - 8, y + 14, name, "lab-tick", "end"), rect(x0, y, max(length, 0.5), 19, kind)]
        reach = x0 + length
        if measured is not None:
            low, high = (
                x0 + (width - x0 - 70) * max(measured.gamma + side * measured.gamma_error, 0) / longest
                for side in (-1.96, 1.96)
            )
            parts += [path([(low, y + 9.5), (high, y + 9.5)], "lab-error")]
            parts += [circle((low + high) / 2, y + 9.5, 4, "lab-dot")]
            reach = max(reach, high)
        parts.append(text(reach + 7, y + 14, number(value), "lab-tick"))
    label = ", ".join(f"{name} {number(value)}" for name, value, _, _ in bars)
    return svg(width, height, f"Energies: {label}.", parts)
