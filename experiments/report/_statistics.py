"""Means over seeds with 95 % intervals (Student's t), and paired differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._results import read_all

__all__ = ["Estimate", "Results", "estimate", "load"]

Key = tuple[int, int]  # draw, seed


class Estimate(NamedTuple):
    """A mean over n seeds, and half the width of its 95 % interval (nan for one seed)."""

    mean: float
    half: float
    n: int

    def __str__(self) -> str:
        return self.text(3)

    def text(self, digits: int) -> str:
        """Mean and interval with so many digits behind the point."""
        spread = "" if math.isnan(self.half) else f" ± {self.half:.{digits}f}"
        return f"{self.mean:.{digits}f}{spread}"

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - (0.0 if math.isnan(self.half) else self.half)

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + (0.0 if math.isnan(self.half) else self.half)


class Results(NamedTuple):
    """All records of one experiment: variant, then (draw, seed)."""

    records: dict[str, dict[Key, Any]]

    def of(self, variant: str, read: Callable[[Any], float]) -> Estimate | None:
        """The mean of what `read` finds in each record of a variant."""
        found = self.records.get(variant, {})
        return estimate(read(record["results"]) for record in found.values()) if found else None

    def gap(self, one: str, other: str, read: Callable[[Any], float]) -> Estimate | None:
        """Mean difference over the seeds that both have."""
        first, second = self.records.get(one, {}), self.records.get(other, {})
        shared = sorted(first.keys() & second.keys())
        if not shared:
            return None
        return estimate(read(first[key]["results"]) - read(second[key]["results"]) for key in shared)

    def wins(self, one: str, other: str, read: Callable[[Any], float]) -> str:
        """In how many of the shared seeds one is above the other."""
        first, second = self.records.get(one, {}), self.records.get(other, {})
        shared = first.keys() & second.keys()
        above = sum(read(first[key]["results"]) > read(second[key]["results"]) for key in shared)
        return f"{above} of {len(shared)}"


def estimate(numbers: Iterable[float]) -> Estimate:
    """Mean and half the width of its 95 % interval."""
    from scipy.stats import t

    values = np.asarray(list(numbers), float)
    n = len(values)
    half = float(t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    return Estimate(float(values.mean()), half, n)


def load(folder: Path, experiment: str) -> Results:
    """The records of an experiment."""
    records: dict[str, dict[Key, Any]] = {}
    for record in read_all(folder, experiment):
        records.setdefault(record["variant"], {})[record["draw"], record["seed"]] = record
    return Results(records)
