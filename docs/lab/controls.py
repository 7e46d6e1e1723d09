"""The sliders of a live page: one declaration for the page's form and for what Python takes from it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

__all__ = ["Slider", "defaults", "read_sliders"]


class Slider(NamedTuple):
    """A number between two ends, in steps. Integers where the step is one."""

    name: str
    label: str
    low: float
    high: float
    step: float
    start: float


def defaults(sliders: Iterable[Slider]) -> dict[str, Any]:
    """Where the sliders stand when the page opens."""
    return {one.name: one.start for one in sliders}


def read_sliders(sliders: Iterable[Slider], state: dict[str, Any]) -> dict[str, Any]:
    """The sliders' values out of a page's state.

    Raises ``ValueError`` for a value that is missing, no number or out of range: a page has no such sliders.
    """
    return {one.name: _read(one, state.get(one.name)) for one in sliders}


def _read(slider: Slider, value: Any) -> float | int:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not slider.low <= value <= slider.high:
        raise ValueError(f"`{slider.name}` must be from {slider.low} to {slider.high}; got {value!r}")
    if not isinstance(slider.step, int):
        return float(value)
    if value != int(value):
        raise ValueError(f"`{slider.name}` must be a whole number; got {value!r}")
    return int(value)
