"""The command: which experiment, how many seeds, on what; goes on where it was stopped."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ._registry import NAMES, Unit, experiment, units
from ._results import CACHE, RESULTS, is_done, made_by_another
from ._train import trainer

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m experiments``; 0 when all is done, 3 when some is left, 2 where results are in the way."""
    given = _parser().parse_args(argv)
    if given.name == "report":
        from .report import write_report

        return write_report()
    _one_thread_each()
    names = NAMES if given.name == "all" else (given.name,)
    folder = Path(given.out) if given.out else CACHE / "quick" if given.quick else RESULTS
    on_gpu = given.device != "cpu"
    stack = given.stack if given.stack else None if on_gpu else 1
    try:
        work = [unit for name in names for unit in units(name, given.seeds, stack, quick=given.quick, only=given.only)]
        work = [unit for unit in work if given.draw in (None, unit.draw)]
        left = [unit for unit in work if given.again or not is_done(folder, unit, given.framework)]
        others = [other for unit in left if (other := made_by_another(folder, unit, given.framework))]
        if others and not given.again and not given.quick:
            print(
                f"{folder} has results of {len(others)} of {len(left)} units that {others[0]} made, and "
                f"{given.framework} would replace: go on with them by --framework {others[0]}, write elsewhere by "
                "--out, or replace them by --again",
                file=sys.stderr,
            )
            return 2
        if given.list:
            for unit in left:
                print(unit.experiment, f"{unit.variant!r}", "draw", unit.draw, "seeds", *unit.seeds)
            return 0
        without_data = _prepare(left, given)
        left = [unit for unit in left if (unit.experiment, unit.draw) not in without_data]
        print(f"{len(work)} units, {len(left)} to do; results in {folder}", flush=True)
        return max(3 if without_data else 0, _run(left, folder, given))
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130


def _prepare(left: list[Unit], given: argparse.Namespace) -> set[tuple[str, int]]:
    """Make what the units need; the experiments and draws whose data can neither be read nor made here."""
    missing = set()
    for name, draw in sorted({(unit.experiment, unit.draw) for unit in left}):
        try:
            experiment(name).prepare(draw, trainer(given.framework, given.device), quick=given.quick)
        except ImportError as error:
            print(f"{name}: draw {draw} is left out, its data are not in {CACHE}: {error}", file=sys.stderr)
            missing.add((name, draw))
    return missing


def _run(left: list[Unit], folder: Path, given: argparse.Namespace) -> int:
    from ._work import in_processes, in_turn

    stop = time.monotonic() + given.seconds if given.seconds else None
    where = (given.framework, given.device, str(folder))
    undone = (in_turn if given.jobs == 1 else in_processes)(left, where, stop, given.jobs)
    if undone:
        print(f"{undone} of {len(left)} units are left; the same command goes on from here")
    return 3 if undone else 0


def _one_thread_each() -> None:
    """Before a framework is imported: units share the processors, and threads in each would compete."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    flags = "--xla_cpu_multi_thread_eigen=false"
    os.environ.setdefault("XLA_FLAGS", flags)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    parser.add_argument(
        "name", choices=(*NAMES, "all", "report"), help="report writes docs/reproduction.md from results"
    )
    parser.add_argument("--seeds", type=int, help="how many, from 0 (default: as committed)")
    parser.add_argument("--framework", choices=("torch", "jax"), default="torch")
    parser.add_argument("--device", default="cpu", help="cpu, or gpu")
    parser.add_argument("--quick", action="store_true", help="little of everything, results in build/experiments/quick")
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--stack", type=int, help="seeds trained at once (default: 1, on a GPU all)")
    parser.add_argument("--seconds", type=float, help="start no unit after that long")
    parser.add_argument("--only", default="", help="variants whose name contains this")
    parser.add_argument("--draw", type=int, help="this draw of the data alone")
    parser.add_argument("--out", help="folder of the results")
    parser.add_argument("--again", action="store_true", help="also what has a result")
    parser.add_argument("--list", action="store_true", help="say what would run")
    return parser
