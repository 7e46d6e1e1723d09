"""The pytest plugin, loaded only when asked for: ``-p ia_core.conformance.plugin``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ._clause import CLAUSES, Clause
from ._implementation import Implementation
from ._targets import Options, resolve, select_clauses
from ._verdict import PROFILES, Verdict, check_deviations, judge

__all__ = ["ConformanceRun"]


class ConformanceRun:
    """One run: what is judged, by which clauses, and the verdicts so far."""

    def __init__(
        self,
        implementations: Sequence[Implementation],
        clauses: Sequence[Clause] = tuple(CLAUSES.values()),
        *,
        profile: str = "quick",
        seed: int = 0,
        on_verdict: Callable[[Verdict], None] = lambda verdict: None,
    ) -> None:
        for implementation in implementations:
            check_deviations(implementation)
        self.implementations, self.clauses = list(implementations), list(clauses)
        self.profile, self.seed, self.on_verdict = profile, seed, on_verdict
        self.verdicts: list[Verdict] = []
        self.total = len(self.implementations) * len(self.clauses)

    def judge(self, implementation: Implementation, clause: Clause) -> Verdict:
        """Judge and remember."""
        verdict = judge(implementation, clause, profile=self.profile, seed=self.seed)
        self.verdicts.append(verdict)
        self.on_verdict(verdict)
        return verdict

    @pytest.fixture
    def conformance_run(self) -> ConformanceRun:
        """The run that a test belongs to."""
        return self

    @pytest.hookimpl
    def pytest_generate_tests(self, metafunc: Any) -> None:
        """One test for every implementation and clause."""
        if {"implementation", "clause"} <= set(metafunc.fixturenames):
            pairs = [(one, clause) for one in self.implementations for clause in self.clauses]
            names = [f"{one.name}-{clause.label}" for one, clause in pairs]
            metafunc.parametrize(("implementation", "clause"), pairs, ids=names)


def pytest_addoption(parser: Any) -> None:
    """Options of the plugin."""
    group = parser.getgroup("ia-core", "conformance of indirect attention")
    group.addoption(
        "--ia-target", action="append", default=[], help="module:function, module:adapter or a built-in name"
    )
    group.addoption("--ia-profile", default="quick", choices=sorted(PROFILES), help="how many cases are drawn")
    group.addoption("--ia-seed", default=0, type=int, help="the same seed draws the same cases")
    group.addoption("--ia-clause", action="append", default=[], help="only clauses whose label starts so")
    group.addoption("--ia-library", default="numpy", help="what a module:function takes and returns")


def pytest_configure(config: Any) -> None:
    """Register the run that the options describe, unless the caller has registered one."""
    if any(isinstance(plugin, ConformanceRun) for plugin in config.pluginmanager.get_plugins()):
        return
    options = Options(library=config.getoption("--ia-library"))
    run = ConformanceRun(
        [resolve(target, options) for target in config.getoption("--ia-target")],
        select_clauses(config.getoption("--ia-clause")),
        profile=config.getoption("--ia-profile"),
        seed=config.getoption("--ia-seed"),
    )
    config.pluginmanager.register(run, "ia-conformance-run")
