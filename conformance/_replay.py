"""What ``ia-core replay`` does: judge an implementation by one clause on one saved case, bit for bit the same."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from ._clause import CLAUSES
from ._process import Limits
from ._recipe import Recipe, catalogue, words
from ._saved import SavedCase, read_case
from ._targets import Options
from ._worker import Worker

__all__ = ["replay"]


def replay(options: argparse.Namespace, fast: Callable[..., Any]) -> int:
    """Print the verdict; 0 if the clause holds on this case, 1 if it does not, 2 if the call makes no sense."""
    try:
        saved = read_case(options.case)
        worker = _worker_for(saved, options, fast)
    except (TypeError, ValueError) as error:
        print(f"ia-core: {error}", file=sys.stderr)
        return 2
    about = saved.about
    with worker:
        try:
            worker.implementation  # noqa: B018 - is it there at all?
        except (TypeError, ValueError) as error:
            print(f"ia-core: {error}", file=sys.stderr)
            return 2
        if saved.case is None:  # the clause builds its own case
            verdict = worker.judge(about["label"], about["dtype"], about["profile"], about["seed"])
        else:
            verdict = worker.repeat(about["label"], saved.case, about["dtype"], about["profile"], about["seed"])
    print(f"{verdict.label} {CLAUSES[verdict.label].title} ({verdict.dtype})")
    print(f"{verdict.implementation}: {verdict.outcome}" + (f": {verdict.reason}" if verdict.reason else ""))
    for title, text in (("seen", verdict.seen), ("on", verdict.case), ("printed", verdict.details.get("printed"))):
        if text:
            print(f"{title}: {text}")
    return int(verdict.bad)


def _worker_for(saved: SavedCase, options: argparse.Namespace, fast: Callable[..., Any]) -> Worker:
    """The target as the file says it was judged, where the call does not say otherwise."""
    about = saved.about
    said = Options(device=options.device)
    if ":" in options.target:
        supports = words(options.supports) or tuple(about["supports"])
        said = Options(
            options.library or about["library"],
            options.layout or about["layout"],
            (about["dtype"],),
            supports,
            options.device or about.get("device"),
        )
    recipe = Recipe(options.target, said, partial(catalogue, fast))
    limits = Limits.of(about["profile"], options.timeout, options.memory)
    return Worker(recipe, limits, isolate=not options.in_process)
