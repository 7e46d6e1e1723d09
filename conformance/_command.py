"""What ``ia-core conform`` does: find the implementations, run the suite under pytest, report."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ._implementation import Implementation
from ._libraries import has_device, to_library
from ._own import fast_paths, references
from ._report import print_report, summary, write_html, write_json
from ._targets import Options, resolve, select_clauses
from .adapters import BUILTIN, installed
from .plugin import ConformanceRun

__all__ = ["catalogue", "conform"]

Catalogue = dict[str, Callable[[], Implementation]]


def catalogue(fast: Callable[..., Any]) -> Catalogue:
    """Built-in targets by name: the reference, our fast paths (behind the function given), everybody else's kernels."""
    return {**references(), **fast_paths(fast), **BUILTIN}


def conform(options: argparse.Namespace, fast: Callable[..., Any], versions: dict[str, str]) -> int:
    """Judge what the options name; the exit status of the command."""
    try:
        run = _run_of(options, catalogue(fast))
    except (TypeError, ValueError) as error:
        print(f"ia-core: {error}", file=sys.stderr)
        return 2
    console = Console()
    console = console if console.is_terminal else Console(width=150)
    status = _judge(run, options.junit, console)
    complete = len(run.verdicts) == run.total
    print_report(console, run.verdicts)
    data = summary(run.verdicts, versions=versions, profile=options.profile, seed=options.seed, complete=complete)
    if options.html:
        write_html(options.html, data, run.verdicts)
    if options.json:
        write_json(options.json, data)
    if complete:
        return int(any(verdict.bad for verdict in run.verdicts))
    interrupted = status == pytest.ExitCode.INTERRUPTED
    why = "interrupted" if interrupted else f"pytest ended with {status}"
    console.print(f"{why} after {len(run.verdicts)} of {run.total} verdicts", style="bold red")
    return 130 if interrupted else 1


def _run_of(options: argparse.Namespace, builtin: Catalogue) -> ConformanceRun:
    said = Options(options.library, options.layout, _words(options.dtypes), _words(options.supports), options.device)
    clauses = select_clauses(options.clause)
    if options.targets:
        implementations = [resolve(target, said, builtin) for target in options.targets]
    else:
        implementations = _everything(builtin, options.device)
    for implementation in implementations:
        _check_device(implementation)
    return ConformanceRun(implementations, clauses, profile=options.profile, seed=options.seed)


def _check_device(implementation: Implementation) -> None:
    """Refuse a library or a device that is not there before anything is judged (IA-X-21)."""
    library, device = implementation.library, implementation.device
    if device not in (None, "cpu") and library == "numpy":
        raise ValueError(
            f"`--device` of {implementation.name} must be cpu: it takes numpy arrays; got {device} [IA-X-21]"
        )
    try:
        to_library(np.zeros(1, np.float32), library, device)
    except Exception as error:  # whatever the framework raises for a device that it does not have
        place = library if device is None else f"{library} on {device}"
        raise ValueError(f"{implementation.name} needs {place}, not to be had here: {error} [IA-X-21]") from error


def _everything(builtin: Catalogue, device: str | None) -> list[Implementation]:
    """The reference on NumPy, our fast paths on what is installed, and the kernels of others."""
    ours = [name for name in builtin if name.startswith("ia-") and has_device(name.removeprefix("ia-"))]
    found = [builtin[name]() for name in ["reference-numpy", *ours, *installed()]]
    if device in (None, "cpu"):
        return found
    return [dataclasses.replace(one, device=device) for one in found if one.library in ("torch", "jax", "cupy")]


def _judge(run: ConformanceRun, junit: str | None, console: Console) -> int:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task("judging", total=run.total)
    run.on_verdict = lambda v: bar.update(task, advance=1, description=f"{v.implementation} {v.label}")
    # The user's own pytest set-up is for their tests: nothing of it may take part in a verdict.
    os.environ.pop("PYTEST_ADDOPTS", None)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    arguments = ["--pyargs", "ia_core.conformance.suite", "-p", "ia_core.conformance.plugin", "--noconftest"]
    arguments += ["-p", "no:terminal", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", os.getcwd()]
    arguments += [f"--junitxml={os.path.abspath(junit)}"] if junit else []
    with bar:
        return int(pytest.main(arguments, plugins=[run]))


def _words(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(word.strip() for word in text.split(",") if word.strip())
