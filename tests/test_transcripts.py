"""The sessions that the docs show come out as they stand there."""

from __future__ import annotations

from pathlib import Path

import pytest

from .transcripts import BLOCK, comparable, played

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "conformance.md"


def test_session_comes_out_as_shown(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    text = PAGE.read_text(encoding="utf-8")
    assert sum(1 for match in BLOCK.finditer(text) if not match["file"]) == 3
    assert comparable(played(text, tmp_path)) == comparable(text)


def test_thresholds_come_out_as_shown(tmp_path: Path) -> None:
    """To the last digit: closed forms, of weights from a seed."""
    text = (DOCS / "noise.md").read_text(encoding="utf-8")
    assert sum(1 for _ in BLOCK.finditer(text)) == 1
    assert played(text, tmp_path) == text


def test_numbers_alone_are_free() -> None:
    assert comparable("off by 1.5e-3 in float32 (IA-F-01), 12 of 94") == "off by # in float32 (IA-F-01), 12 of 94"
