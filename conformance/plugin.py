"""The pytest plugin, loaded only when asked for: ``-p ia_core.conformance.plugin``.

Three lines put an implementation under test in a suite of one's own::

    pytest_plugins = ["ia_core.conformance.plugin"]  # conftest.py

    from ia_core.conformance.suite import test_clause  # test_attention.py
    ia_target = "mypackage.kernels:attention"

``ia_target`` may also be an :class:`Implementation`, or a list; the ini option of the same name and ``--ia-target``
name targets for test files that have none of their own.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ._clause import CLAUSES, Clause
from ._implementation import Implementation
from ._process import Limits
from ._recipe import Recipe
from ._saved import save_failure
from ._summary import distinct
from ._targets import Options, select_clauses
from ._verdict import PROFILES, Verdict, check_deviations, dtypes_of
from ._worker import Worker
from ._xfails import check_xfails, read_xfails

__all__ = ["ConformanceRun"]


class ConformanceRun:
    """One run: what is judged, by which clauses, and the verdicts so far.

    Parameters
    ----------
    implementations : sequence of Implementation or Recipe
    clauses : sequence of Clause
    profile : str
        quick or full.
    seed : int
    isolate : bool
        Judge each implementation in a process of its own, which it may end without ending the run.
    limits : Limits, optional
        Time and memory; by default those of the profile.
    save : str, optional
        Folder for the cases that fail.
    on_verdict : callable

    Raises
    ------
    TypeError, ValueError
        If an implementation cannot be built, or declares deviations from clauses that do not exist (IA-X-21).
    """

    def __init__(
        self,
        implementations: Sequence[Implementation | Recipe] = (),
        clauses: Sequence[Clause] = tuple(CLAUSES.values()),
        *,
        profile: str = "quick",
        seed: int = 0,
        isolate: bool = True,
        limits: Limits | None = None,
        save: str | None = None,
        on_verdict: Callable[[Verdict], None] = lambda verdict: None,
    ) -> None:
        self.clauses, self.profile, self.seed = list(clauses), profile, seed
        self.isolate, self.limits = isolate, limits or Limits.of(profile)
        self.save, self.on_verdict = save, on_verdict
        self.verdicts: list[Verdict] = []
        self.items: list[tuple[Implementation, Clause, str]] = []
        # Verdicts that were found elsewhere, by implementation (its id), label and dtype.
        self.known: dict[tuple[int, str, str], Verdict] = {}
        self._workers: dict[int, Worker] = {}
        self._now: Worker | None = None
        self.default = self.add(implementations)

    @property
    def implementations(self) -> list[Implementation]:
        """What is judged; stand-ins for those that live in another process."""
        return [worker.implementation for worker in self._workers.values()]

    @property
    def notes(self) -> list[str]:
        """What a reader of the verdicts should know."""
        return list(dict.fromkeys(note for worker in self._workers.values() for note in worker.notes))

    @property
    def total(self) -> int:
        """How many verdicts there will be."""
        return len(self.items)

    def add(self, implementations: Sequence[Implementation | Recipe]) -> list[tuple[Implementation, Clause, str]]:
        """Put more under test; gives what is to be judged of them."""
        added = []
        for one in implementations:
            recipe = one if isinstance(one, Recipe) else Recipe(implementation=one)
            worker = Worker(recipe, self.limits, isolate=self.isolate)
            implementation = worker.implementation
            check_deviations(implementation)
            check_xfails(recipe.deviations, implementation)
            self._workers[id(implementation)] = worker
            if len(implementations) > 1:
                worker.close()  # it starts again when its turn comes: not all are to lie in memory together
            added += [
                (implementation, clause, dtype)
                for clause in self.clauses
                for dtype in dtypes_of(implementation, clause, self.profile)
            ]
        self.items += added
        return added

    def judge(self, implementation: Implementation, clause: Clause, dtype: str) -> Verdict:
        """Judge and remember."""
        worker = self._workers[id(implementation)]
        found = self.known.get((id(implementation), clause.label, dtype))
        if found is not None:
            return self._remember(found, implementation)
        if self._now is not None and self._now is not worker:
            self._now.close()
        self._now = worker
        verdict = worker.judge(clause.label, dtype, self.profile, self.seed)
        verdict = dataclasses.replace(verdict, implementation=self._names()[id(implementation)])
        if self.save is not None and verdict.bad and (verdict.failing is not None or worker.drawn is not None):
            self._save(self.save, verdict, worker.drawn, implementation)
        return self._remember(verdict, implementation)

    def _remember(self, verdict: Verdict, implementation: Implementation) -> Verdict:
        verdict = dataclasses.replace(verdict, implementation=self._names()[id(implementation)])
        self.verdicts.append(verdict)
        self.on_verdict(verdict)
        return verdict

    def _names(self) -> dict[int, str]:
        """What a report calls each implementation: columns of two with one name would be taken for one."""
        return dict(zip(self._workers, distinct([one.name for one in self.implementations]), strict=True))

    def _save(self, folder: str, verdict: Verdict, drawn: Any, implementation: Implementation) -> None:
        try:
            path = save_failure(folder, verdict, drawn, implementation, profile=self.profile, seed=self.seed)
        except OSError as error:  # a full disk is no reason to lose the verdicts
            verdict.details["saved"] = f"not saved: {error}"
        else:
            verdict.details["saved"] = str(path)

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers.values():
            worker.close()

    @pytest.fixture
    def conformance_run(self) -> ConformanceRun:
        """The run that a test belongs to."""
        return self

    @pytest.hookimpl
    def pytest_generate_tests(self, metafunc: Any) -> None:
        """One test for every implementation, clause and dtype."""
        if {"implementation", "clause", "dtype", "conformance_run"} <= set(metafunc.fixturenames):
            own = getattr(metafunc.module, "ia_target", None)
            items = self.default if own is None else self._own(own)
            names = [f"{one.name}-{clause.label}-{dtype}" for one, clause, dtype in items]
            metafunc.parametrize(("implementation", "clause", "dtype"), items, ids=names)

    @pytest.hookimpl
    def pytest_unconfigure(self) -> None:
        """End all processes with pytest."""
        self.close()

    def _own(self, targets: Any) -> list[tuple[Implementation, Clause, str]]:
        """What a test module puts under test."""
        targets = targets if isinstance(targets, (list, tuple)) else [targets]
        with _usage_errors():
            return self.add([Recipe(target=t) if isinstance(t, str) else t for t in targets])


def pytest_addoption(parser: Any) -> None:
    """Options of the plugin."""
    group = parser.getgroup("ia-core", "conformance of indirect attention")
    add = group.addoption
    add("--ia-target", action="append", default=[], help="module:function, module:adapter or a built-in name")
    add("--ia-profile", default="quick", choices=sorted(PROFILES), help="how many cases are drawn")
    add("--ia-seed", default=0, type=int, help="the same seed draws the same cases")
    add("--ia-clause", action="append", default=[], help="only clauses whose label starts so")
    add("--ia-library", default=None, help="what a module:function takes and returns (default: numpy)")
    add("--ia-xfails", metavar="FILE", help="failures that are expected, with their reasons")
    add("--ia-save", metavar="DIR", help="save cases that fail for `ia-core replay`")
    add("--ia-timeout", type=float, help="seconds for one clause in one dtype")
    add("--ia-memory", type=float, metavar="GIB", help="memory that an implementation may use")
    add("--ia-in-process", action="store_true", help="judge in pytest's own process, which a crash then ends")
    parser.addini("ia_target", "what is judged where --ia-target names nothing", type="linelist", default=[])


def pytest_configure(config: Any) -> None:
    """Register the run that the options describe, unless the caller has registered one."""
    if any(isinstance(plugin, ConformanceRun) for plugin in config.pluginmanager.get_plugins()):
        return
    ask = config.getoption
    with _usage_errors():
        options = Options(library=ask("--ia-library"))
        xfails = read_xfails(ask("--ia-xfails")) if ask("--ia-xfails") else {}
        run = ConformanceRun(
            [Recipe(t, options, deviations=xfails) for t in ask("--ia-target") or config.getini("ia_target")],
            select_clauses(ask("--ia-clause")),
            profile=ask("--ia-profile"),
            seed=ask("--ia-seed"),
            isolate=not ask("--ia-in-process"),
            limits=Limits.of(ask("--ia-profile"), ask("--ia-timeout"), ask("--ia-memory")),
            save=ask("--ia-save"),
        )
    config.pluginmanager.register(run, "ia-conformance-run")


@contextlib.contextmanager
def _usage_errors() -> Any:
    """A target or an option that makes no sense is a wrong call of pytest, not a crash of the plugin."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise pytest.UsageError(str(error)) from error
