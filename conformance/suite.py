"""The conformance suite as pytest sees it: one test for every implementation, clause and dtype.

Run it as ``ia-core conform``, as ``pytest -p ia_core.conformance.plugin --ia-target TARGET --pyargs
ia_core.conformance.suite``, or import ``test_clause`` into a test file of your own (see ``plugin``).
"""

from __future__ import annotations

import pytest

from ._clause import Clause
from ._implementation import Implementation
from .plugin import ConformanceRun

__all__ = ["test_clause"]


def test_clause(conformance_run: ConformanceRun, implementation: Implementation, clause: Clause, dtype: str) -> None:
    """The clause holds for the implementation, is not claimed, or is a declared deviation that shows."""
    verdict = conformance_run.judge(implementation, clause, dtype)
    if verdict.outcome == "not supported":
        pytest.skip(f"not supported: {verdict.reason}")
    if verdict.outcome == "deviation":
        pytest.xfail(verdict.reason)
    if verdict.bad:
        pytest.fail("\n".join(verdict.lines()), pytrace=False)
