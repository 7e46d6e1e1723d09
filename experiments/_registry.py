"""The experiments by name; each is a package that says what it trains and how it measures."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

__all__ = ["NAMES", "Unit", "experiment", "units"]

NAMES = ("synthetic", "osod", "speech", "retrieval")


class Unit(NamedTuple):
    """What one process does at a time: some seeds of one variant on one draw of the data."""

    experiment: str
    variant: str
    options: Any
    draw: int
    seeds: tuple[int, ...]


def experiment(name: str) -> Any:
    """A package with VARIANTS, DRAWS, SEEDS, quick(options), weight(options), prepare(draw, quick) and run(...).

    One with variants of tuning also has TUNING_DRAW: the draw of the data that they are judged on.
    """
    return importlib.import_module(f"experiments.{name}")


def units(name: str, seeds: int | None, stack: int | None, *, quick: bool, only: str) -> list[Unit]:
    """All units of an experiment, the longest first; a stack of None takes all seeds at once."""
    package = experiment(name)
    found = []
    for variant, options in package.VARIANTS.items():
        if only not in variant:
            continue
        options = package.quick(options) if quick else options
        tuning = variant.startswith("tuning")
        draws = (package.TUNING_DRAW,) if tuning else range(package.DRAWS)
        for draw in (0,) if quick else draws:
            wanted = range(draw, package.SEEDS if seeds is None else seeds, package.DRAWS)
            numbers = list(range(seeds or 1)) if quick else list(wanted)
            if tuning:  # chosen on seeds that no result uses
                numbers = [100 + number for number in range(seeds or 3)][:3]
            size = len(numbers) if stack is None else stack
            found += [
                Unit(name, variant, options, draw, tuple(numbers[start : start + size]))
                for start in range(0, len(numbers), size or 1)
            ]
    return sorted(found, key=lambda unit: -package.weight(unit.options) * len(unit.seeds))
