"""A conformance run as independent units: each a clause on an implementation in a dtype."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import json
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ia_core._sweep import Submit, Unit, code_digest, sweep

from ._clause import CLAUSES
from ._process import Limits
from ._recipe import Recipe, catalogue
from ._targets import Options, look_here
from ._verdict import Verdict
from .plugin import ConformanceRun

__all__ = ["judge_unit", "swept"]

JUDGE = f"{__name__}:judge_unit"


def swept(
    run: ConformanceRun,
    recipes: list[Recipe],
    fast: Callable[..., Any],
    versions: Mapping[str, str],
    *,
    workers: int,
    keep: str | None,
    submit: Submit | None,
    tell: Callable[[Verdict], None],
) -> dict[tuple[int, str, str], Verdict]:
    """The verdicts of a run that was built from recipes with targets, by implementation (its id), label and dtype."""
    of_recipe = dict(zip(map(id, run.implementations), recipes, strict=True))
    digests = {recipe.target: _digest(recipe.target, versions) for recipe in recipes}
    units = []
    for implementation, clause, dtype in run.items:
        recipe = of_recipe[id(implementation)]
        arguments = {
            "target": recipe.target,
            "options": {n: list(v) if isinstance(v, tuple) else v for n, v in recipe.options.given().items()},
            "deviations": dict(recipe.deviations),
            "fast": f"{fast.__module__}:{fast.__name__}",
            "label": clause.label,
            "dtype": dtype,
            "profile": run.profile,
            "seed": run.seed,
            "limits": dataclasses.asdict(run.limits),
            "save": run.save,
        }
        units.append(Unit(JUDGE, arguments, digests[recipe.target]))
    found = sweep(units, workers=workers, keep=keep, submit=submit, tell=lambda unit, result: tell(Verdict(**result)))
    names = [(id(implementation), clause.label, dtype) for implementation, clause, dtype in run.items]
    return {name: Verdict(**result) for name, result in zip(names, found, strict=True)}


def judge_unit(
    *,
    target: str,
    options: dict[str, Any],
    deviations: dict[str, str],
    fast: str,
    label: str,
    dtype: str,
    profile: str,
    seed: int,
    limits: dict[str, Any],
    save: str | None,
) -> dict[str, Any]:
    """A verdict as plain data; what the call was stays in the file that ``save`` asks for."""
    # The process that judges an implementation stays between units: starting it takes longer than many a clause.
    about = json.dumps([target, options, deviations, fast, profile, seed, limits, save, threading.get_ident()])
    if about not in _RUNS:
        module, _, name = fast.partition(":")
        function = getattr(importlib.import_module(module), name)
        given: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in options.items()}
        said = Options(**given)
        recipe = Recipe(target, said, partial(catalogue, function), deviations=deviations)
        _close(threading.get_ident())
        _RUNS[about] = ConformanceRun([recipe], [], profile=profile, seed=seed, limits=Limits(**limits), save=save)
        _THREADS[threading.get_ident()] = about
    run = _RUNS[about]
    (implementation,) = run.implementations
    verdict = run.judge(implementation, CLAUSES[label], dtype)
    data = {
        field.name: getattr(verdict, field.name) for field in dataclasses.fields(verdict) if field.name != "failing"
    }
    plain: dict[str, Any] = json.loads(json.dumps(data, default=_plain))
    return plain


_RUNS: dict[str, ConformanceRun] = {}
_THREADS: dict[int, str] = {}


def _close(thread: int) -> None:
    """End the processes of the implementation that this thread judged before."""
    before = _RUNS.pop(_THREADS.pop(thread, ""), None)
    if before is not None:
        before.close()


def _plain(thing: Any) -> Any:
    return thing.item() if hasattr(thing, "item") else str(thing)


def _digest(target: str, versions: Mapping[str, str]) -> str:
    """Of what a verdict depends on: this package, the libraries, and the file of the target (not what that imports)."""
    folders = []
    for name in ("ia_core.backends", "ia_core.conformance"):
        found = importlib.util.find_spec(name)
        folders += [Path(place) for place in (found.submodule_search_locations or [])] if found else []
    return code_digest(
        *folders, also=[dict(versions), _digest_of_file(target.partition(":")[0]) if ":" in target else ""]
    )


def _digest_of_file(module: str) -> str:
    look_here()
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # the verdicts will say so
        return ""
    if found is None or found.origin is None or not Path(found.origin).is_file():
        return ""
    return hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()
