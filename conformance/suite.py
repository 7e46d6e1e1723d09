"""The conformance suite as pytest sees it: one test for every implementation and clause.

Run it as ``ia-core conform``, or as ``pytest -p ia_core.conformance.plugin --ia-target TARGET --pyargs
ia_core.conformance.suite``.
"""

from __future__ import annotations

import pytest

from ._clause import Clause
from ._implementation import Implementation
from .plugin import ConformanceRun

__all__: list[str] = []


def test_clause(conformance_run: ConformanceRun, implementation: Implementation, clause: Clause) -> None:
    """The clause holds for the implementation, is not claimed, or is a declared deviation that shows."""
    verdict = conformance_run.judge(implementation, clause)
    if verdict.outcome == "not supported":
        pytest.skip(f"not supported: {verdict.reason}")
    if verdict.outcome == "deviation":
        pytest.xfail(verdict.reason)
    if verdict.bad:
        pytest.fail("\n".join(verdict.lines()), pytrace=False)
