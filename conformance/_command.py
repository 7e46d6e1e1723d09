"""What ``ia-core conform`` does: find the implementations, run the suite under pytest, report."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from ia_core._sweep import Submit, UnitError

from ._libraries import has_device
from ._process import Limits
from ._progress import progress
from ._recipe import Recipe, catalogue, words
from ._report import check_paths, print_report, summary, write_badge, write_html, write_json, write_markdown
from ._sweep_units import swept
from ._targets import Options, select_clauses
from ._worker import can_isolate
from ._xfails import read_xfails
from .adapters import installed
from .plugin import ConformanceRun

__all__ = ["catalogue", "conform"]


def conform(
    options: argparse.Namespace, fast: Callable[..., Any], versions: dict[str, str], submit: Submit | None = None
) -> int:
    """Judge what the options name; the exit status of the command. ``submit`` runs units elsewhere."""
    try:
        recipes = _recipes_of(options, fast)
        run = _run_of(options, recipes)
    except (OSError, TypeError, ValueError) as error:
        print(f"ia-core: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ia-core: interrupted before the first verdict", file=sys.stderr)
        return 130
    if options.workers or options.keep or submit:
        status = _sweep(run, recipes, fast, versions, options, submit)
        if status:
            return status
    status = _judge(run, options.junit)
    complete = len(run.verdicts) == run.total
    console = Console()
    console = console if console.is_terminal else Console(width=150)
    for note in [*run.notes, _how(run)]:
        console.print(Text(note), soft_wrap=True)
    print_report(console, run.verdicts)
    _write(options, run, versions, complete)
    if complete:
        return int(any(verdict.bad for verdict in run.verdicts))
    interrupted = status == pytest.ExitCode.INTERRUPTED
    why = "interrupted" if interrupted else f"pytest ended with {status}"
    console.print(f"{why} after {len(run.verdicts)} of {run.total} verdicts", style="bold red")
    return 130 if interrupted else 1


def _write(options: argparse.Namespace, run: ConformanceRun, versions: dict[str, str], complete: bool) -> None:
    """The reports that were asked for."""
    about: dict[str, Any] = {"profile": run.profile, "seed": run.seed, "limits": _how(run), "complete": complete}
    data = summary(run.verdicts, versions=versions, **about)
    if options.json:
        write_json(options.json, data)
    for path, write in ((options.html, write_html), (options.markdown, write_markdown), (options.badge, write_badge)):
        if path:
            write(path, data, run.verdicts)


def _recipes_of(options: argparse.Namespace, fast: Callable[..., Any]) -> list[Recipe]:
    check_paths({f"--{name}": getattr(options, name) for name in ("html", "json", "junit", "markdown", "badge")})
    supports = words(options.supports)
    said = Options(options.library, options.layout, words(options.dtypes), supports, options.device)
    xfails = read_xfails(options.xfails) if options.xfails else {}
    if options.xfails and len(options.targets) != 1:
        raise ValueError(f"`--xfails` needs one target, whose failures it lists; got {len(options.targets)} [IA-X-21]")
    targets = options.targets or everything(fast, options.device)
    return [Recipe(target, said, partial(catalogue, fast), deviations=xfails) for target in targets]


def _run_of(options: argparse.Namespace, recipes: list[Recipe]) -> ConformanceRun:
    elsewhere = options.workers or options.keep or options.dask
    if elsewhere and options.in_process:
        raise ValueError("`--in-process` judges here, and takes no `--workers`, `--dask` or `--keep` [IA-X-26]")
    if options.workers and options.dask:
        raise ValueError("give `--workers` or `--dask`, not both [IA-X-26]")
    if options.workers is not None and options.workers < 1:
        raise ValueError(f"`--workers` must be at least 1; got {options.workers} [IA-X-26]")
    if options.save:
        Path(options.save).mkdir(parents=True, exist_ok=True)
    return ConformanceRun(
        recipes,
        select_clauses(options.clause),
        profile=options.profile,
        seed=options.seed,
        isolate=not options.in_process,
        limits=Limits.of(options.profile, options.timeout, options.memory),
        save=options.save,
    )


def _sweep(
    run: ConformanceRun,
    recipes: list[Recipe],
    fast: Callable[..., Any],
    versions: dict[str, str],
    options: argparse.Namespace,
    submit: Submit | None,
) -> int:
    """Find all verdicts in other processes; an exit status if that came to nothing, else 0."""
    where: dict[str, Any] = {"workers": options.workers or 1, "keep": options.keep, "submit": submit}
    kept = f"what is finished is kept in {options.keep}" if options.keep else "`--keep DIR` keeps what is finished"
    try:
        with progress(run.total) as tell:
            run.known = swept(run, recipes, fast, versions, **where, tell=tell)
    except KeyboardInterrupt:
        print(f"ia-core: interrupted; {kept}", file=sys.stderr)
        return 130
    except (OSError, UnitError) as error:
        print(f"ia-core: {error}; {kept}", file=sys.stderr)
        return 1
    return 0


def everything(fast: Callable[..., Any], device: str | None) -> list[str]:
    """The reference on NumPy, our fast paths on what is installed, and the kernels of others."""
    builtin = catalogue(fast)
    ours = [name for name in builtin if name.startswith("ia-") and has_device(name.removeprefix("ia-"))]
    found = ["reference-numpy", *ours, *installed()]
    if device in (None, "cpu"):
        return found
    return [name for name in found if builtin[name]().library in ("torch", "jax", "cupy")]


def _judge(run: ConformanceRun, junit: str | None) -> int:
    # The user's own pytest set-up is for their tests: nothing of it may take part in a verdict.
    os.environ.pop("PYTEST_ADDOPTS", None)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    arguments = ["--pyargs", "ia_core.conformance.suite", "-p", "ia_core.conformance.plugin", "--noconftest"]
    arguments += ["-p", "no:terminal", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", os.getcwd()]
    arguments += [f"--junitxml={os.path.abspath(junit)}"] if junit else []
    if run.known:  # all verdicts are there, and were told of
        return int(pytest.main(arguments, plugins=[run]))
    with progress(run.total) as run.on_verdict:
        return int(pytest.main(arguments, plugins=[run]))


def _how(run: ConformanceRun) -> str:
    """Where the implementations ran, and what they could use."""
    if run.isolate and can_isolate():
        return f"each implementation in a process of its own; limits: {run.limits.text()}"
    return "all implementations in this process, without limits of time and memory"
