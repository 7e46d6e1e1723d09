"""One-shot detection in small: box every character of the class of a query image, seen and unseen classes."""

from __future__ import annotations

from typing import Any

from ._backbone import frozen
from ._data import load
from ._run import VARIANTS, quick, run, weight

__all__ = ["DRAWS", "SEEDS", "TUNING_DRAW", "VARIANTS", "headline", "prepare", "quick", "run", "weight"]

DRAWS, SEEDS = 2, 10
TUNING_DRAW = 2  # characters are split anew into seen and unseen: no result sees these unseen ones


def prepare(draw: int, trainer: Any, *, quick: bool) -> None:
    """Make the data of a draw and train its backbone, unless the cache has them."""
    frozen(draw, load(draw, quick=quick), trainer, quick=quick)


def headline(records: list[dict[str, Any]]) -> str:
    """The result in a few words."""
    return "AP50 seen, unseen: " + ", ".join(
        f"{record['seen']['AP50']:.1f} {record['unseen']['AP50']:.1f}" for record in records
    )
