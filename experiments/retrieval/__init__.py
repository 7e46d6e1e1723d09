"""Pictures of words and written words: retrieval across the two as the letters move apart."""

from __future__ import annotations

from typing import Any

from ._data import load
from ._encoder import frozen
from ._run import VARIANTS, quick, run, weight

__all__ = ["DRAWS", "SEEDS", "VARIANTS", "headline", "prepare", "quick", "run", "weight"]

DRAWS, SEEDS = 1, 5


def prepare(draw: int, trainer: Any, *, quick: bool) -> None:
    """Make the data of a draw and train its encoder, unless the cache has them."""
    frozen(draw, load(draw, quick=quick), trainer, quick=quick)


def headline(records: list[dict[str, Any]]) -> str:
    """The result in a few words."""
    return "recall at gap 6: " + ", ".join(f"{record['recall']['6']['word_at_1']:.1f} %" for record in records)
