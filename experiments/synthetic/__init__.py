"""The two synthetic tasks of section 6.1: sorting by an arbitrary ordering, and sequence retrieval."""

from __future__ import annotations

from typing import Any

from ._run import quick, run, weight
from ._variants import VARIANTS

__all__ = ["DRAWS", "SEEDS", "TUNING_DRAW", "VARIANTS", "headline", "prepare", "quick", "run", "weight"]

DRAWS, SEEDS, TUNING_DRAW = 1, 10, 0  # a seed draws its own data


def prepare(draw: int, trainer: Any, *, quick: bool) -> None:
    """Nothing to make beforehand: instances are drawn while a unit runs."""


def headline(records: list[dict[str, Any]]) -> str:
    """The result in a few words."""
    return "accuracy " + ", ".join(f"{record['accuracy']:.3f}" for record in records)
