"""Who tests the tests: every known bug is judged by the clauses, and what survives is a hole in the suite.

A bug is killed by a clause that fails for it. Two modes: ``matrix`` asks every clause about every bug; ``named`` asks
only the clauses that a bug is filed under, and the others about those that survive them. Clause by clause and seed by
seed, because the same seed draws the same cases: the oracle answers once for all bugs.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

from ._clause import CLAUSES, Clause
from ._libraries import has_device
from ._verdict import dtypes_of, judge
from .mutants import MUTANTS, Mutant

__all__ = ["MODES", "Finding", "Kills", "self_test"]

MODES = ("matrix", "named")


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one clause says of one bug with one seed.

    Attributes
    ----------
    mutant, label : str
    seed : int
    outcome : str
        killed, passed, not supported, or broken where the check did not come to an end.
    dtype : str
        In which it was killed.
    reason : str
    seconds : float

    Examples
    --------
    >>> Finding("mask_inverted", "IA-F-06", 0, "killed").outcome
    'killed'
    """

    mutant: str
    label: str
    seed: int
    outcome: str
    dtype: str = ""
    reason: str = ""
    seconds: float = 0.0


@dataclasses.dataclass
class Kills:
    """What a self-test found so far.

    Attributes
    ----------
    profile, mode : str
    seeds : tuple of int
    findings : list of Finding
    absent : dict
        Bugs that were not judged, because their library is not here, with that library.
    complete : bool
        False after Ctrl-C.
    seconds : float

    Examples
    --------
    >>> kills = Kills("quick", "named", (0,), [Finding("mask_inverted", "IA-F-06", 0, "killed")])
    >>> kills.clauses_that_kill("mask_inverted"), kills.rate(0)
    (['IA-F-06'], 1.0)
    """

    profile: str
    mode: str
    seeds: tuple[int, ...]
    findings: list[Finding] = dataclasses.field(default_factory=list)
    absent: dict[str, str] = dataclasses.field(default_factory=dict)
    complete: bool = True
    seconds: float = 0.0

    @property
    def judged(self) -> list[str]:
        """Names of the bugs that were judged at all."""
        seen = {finding.mutant for finding in self.findings}
        return [name for name in MUTANTS if name in seen]

    def clauses_that_kill(self, mutant: str, seed: int | None = None) -> list[str]:
        """The clauses that killed a bug, with a seed or with any."""
        return sorted(
            {f.label for f in self.findings if f.mutant == mutant and f.outcome == "killed" and seed in (None, f.seed)}
        )

    def survivors(self, seed: int) -> list[str]:
        """Bugs that no clause killed with this seed."""
        killed = {f.mutant for f in self.findings if f.seed == seed and f.outcome == "killed"}
        return [name for name in MUTANTS if name not in killed and name not in self.absent]

    def rate(self, seed: int) -> float:
        """The share of bugs judged with this seed that were killed."""
        judged = {f.mutant for f in self.findings if f.seed == seed}
        return 1 - len(judged & set(self.survivors(seed))) / max(1, len(judged))

    def missed(self, seed: int) -> list[str]:
        """Survivors that the profile promises to kill."""
        return [name for name in self.survivors(seed) if self.profile == "full" or not MUTANTS[name].only_full]

    @property
    def good(self) -> bool:
        """Everything promised was killed, with every seed, and no check broke off."""
        broken = any(f.outcome == "broken" for f in self.findings)
        return self.complete and not broken and not any(self.missed(seed) for seed in self.seeds)


@dataclasses.dataclass(frozen=True)
class _Task:
    """One clause with one seed, and the bugs to judge by it."""

    label: str
    seed: int
    profile: str
    mutants: tuple[str, ...]


def self_test(
    *,
    profile: str = "quick",
    mode: str = "matrix",
    seeds: Sequence[int] = (0,),
    clauses: Sequence[Clause] | None = None,
    workers: int | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Kills:
    """Judge every known bug.

    Parameters
    ----------
    profile : str
        quick or full.
    mode : str
        matrix or named.
    seeds : sequence of int
    clauses : sequence of Clause, optional
        Only these; all by default.
    workers : int, optional
        Processes; 0 judges in this one. By default as many as there are processors.
    tell : callable
        Told how many clause-and-bug pairs are done, out of how many known.

    Returns
    -------
    Kills
        Incomplete after Ctrl-C.

    Raises
    ------
    ValueError
        If an option makes no sense (IA-X-21).
    """
    if mode not in MODES:
        raise ValueError(f"`--self-test` must be of {', '.join(MODES)}; got {mode} [IA-X-21]")
    if not seeds:
        raise ValueError("`--seeds` must be at least 1; got 0 [IA-X-21]")
    start = time.perf_counter()
    labels = sorted(clause.label for clause in (CLAUSES.values() if clauses is None else clauses))
    present = [m for m in MUTANTS.values() if has_device(m.library)]
    absent = {m.name: m.library for m in MUTANTS.values() if m not in present}
    kills = Kills(profile, mode, tuple(seeds), absent=absent)
    tasks = [task for seed in seeds for task in _tasks(present, labels, profile, seed, named=mode == "named")]
    try:
        _judge(tasks, kills, workers, tell)
        if mode == "named":
            _judge(list(_second_chance(kills, labels)), kills, workers, tell)
    except KeyboardInterrupt:
        kills.complete = False
    kills.seconds = time.perf_counter() - start
    return kills


def _tasks(mutants: Sequence[Mutant], labels: Sequence[str], profile: str, seed: int, *, named: bool) -> list[_Task]:
    found = [
        _Task(label, seed, profile, tuple(m.name for m in mutants if not named or label in m.killed_by))
        for label in labels
    ]
    return [task for task in found if task.mutants]


def _second_chance(kills: Kills, labels: Sequence[str]) -> Iterator[_Task]:
    """The clauses that survivors were not yet judged by."""
    for seed in kills.seeds:
        left = kills.survivors(seed)
        for label in labels:
            names = tuple(name for name in left if label not in MUTANTS[name].killed_by)
            if names:
                yield _Task(label, seed, kills.profile, names)


def _judge(tasks: Sequence[_Task], kills: Kills, workers: int | None, tell: Callable[[int, int], None]) -> None:
    done, total = len(kills.findings), len(kills.findings) + sum(len(task.mutants) for task in tasks)
    for findings in _results(tasks, (os.cpu_count() or 1) if workers is None else workers):
        kills.findings += findings
        done += len(findings)
        tell(done, total)


def _results(tasks: Sequence[_Task], workers: int) -> Iterator[list[Finding]]:
    """The findings of each task, as they come; from this process for 0 workers."""
    if not workers or not tasks:
        yield from map(judge_task, tasks)
        return
    # Mutants print, seed and thread: that stays in processes of their own.
    pool = ProcessPoolExecutor(min(workers, len(tasks)), multiprocessing.get_context("spawn"), _quiet)
    try:
        waiting: set[Future[list[Finding]]] = {pool.submit(judge_task, task) for task in _heavy_first(tasks)}
        while waiting:
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                yield future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _heavy_first(tasks: Sequence[_Task]) -> list[_Task]:
    """Sweeps, transforms and resources take longest: they must not be left for the end."""
    slow = ("IA-R", "IA-T", "IA-E-16", "IA-E-17", "IA-E-18", "IA-G", "IA-P")
    return sorted(tasks, key=lambda task: (task.seed, not task.label.startswith(slow)))


def _quiet() -> None:
    """Whatever a mutant writes belongs to nobody."""
    sink = os.open(os.devnull, os.O_WRONLY)
    for fd in (1, 2):
        os.dup2(sink, fd)
    os.close(sink)


def judge_task(task: _Task) -> list[Finding]:
    """One clause about several bugs."""
    return [judge_one(MUTANTS[name], CLAUSES[task.label], task.profile, task.seed) for name in task.mutants]


def judge_one(mutant: Mutant, clause: Clause, profile: str, seed: int) -> Finding:
    """One clause about one bug, in the dtypes that the profile asks for until one shows it."""
    start, implementation = time.perf_counter(), mutant.implementation()

    def finding(outcome: str, dtype: str = "", reason: str = "") -> Finding:
        seconds = round(time.perf_counter() - start, 4)
        return Finding(mutant.name, clause.label, seed, outcome, dtype, reason[:300], seconds)

    outcome = "not supported"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of arithmetic that is meant to be wrong
        for dtype in dtypes_of(implementation, clause, profile):
            try:
                verdict = judge(implementation, clause, profile=profile, seed=seed, dtype=dtype, shrink=False)
            except Exception as error:  # the check, not the bug: it is shown, and kills nothing
                return finding("broken", dtype, f"{type(error).__name__}: {error}")
            if verdict.outcome == "fail":
                return finding("killed", dtype, verdict.reason)
            outcome = "passed" if verdict.outcome == "pass" else outcome
    return finding(outcome)
