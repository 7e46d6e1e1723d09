"""Speech-text alignment: where each phone of a known text begins, against the exact truth of a synthesiser."""

from __future__ import annotations

from typing import Any

from ._data import load
from ._encoder import frozen
from ._run import VARIANTS, quick, run, weight

__all__ = ["DRAWS", "SEEDS", "VARIANTS", "headline", "prepare", "quick", "run", "weight"]

DRAWS, SEEDS = 2, 10


def prepare(draw: int, trainer: Any, *, quick: bool) -> None:
    """Make the data of a draw and train its encoder, unless the cache has them."""
    frozen(draw, load(draw, quick=quick), trainer, quick=quick)


def headline(records: list[dict[str, Any]]) -> str:
    """The result in a few words."""
    parts = [record["tests"]["known voices"]["within_20_ms"] for record in records]
    return "within 20 ms " + ", ".join(f"{part:.1f} %" for part in parts)
