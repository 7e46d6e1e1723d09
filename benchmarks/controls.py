"""False alarms and margins: every correct implementation found here, judged by every clause with many seeds.

    python benchmarks/controls.py run [--seeds 20] [--profile full] [--family F] [--workers 2] [--only NAME ...]
        [--out FILE]
    python benchmarks/controls.py report [--out FILE]

``run`` judges the reference, our fast paths and the kernels of others in every dtype that they take; a failure that no
adapter declares is a false alarm, or a bug that nobody knew. It also counts, for every implementation and dtype, the
compared elements by error / bound. What it finds is added to FILE, implementation by implementation and seed by seed:
seeds that FILE has are not judged again, and a run that was stopped goes on where it was. A new version of anything
that takes part, or a change of our own code (comments aside), begins a new FILE. The exit status is 0 only if nothing
is missing and nobody was accused. ``report`` writes a table named like FILE, and, of the default one, the figure.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import subprocess
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

from ia_core.backends import indirect_attention
from ia_core.conformance import CLAUSES, FAMILIES, Clause, Implementation, judge
from ia_core.conformance._clause import Comparison, observing
from ia_core.conformance._files import write_whole
from ia_core.conformance._libraries import has_device
from ia_core.conformance._own import DTYPES, fast_paths, references
from ia_core.conformance._recipe import Recipe
from ia_core.conformance._verdict import dtypes_of
from ia_core.conformance._worker import Worker
from ia_core.conformance.adapters import BUILTIN, installed

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs/results/controls.json"
# What compiles for every new shape stays in one process for all seeds.
COMPILED = ("jax-dpa", "flax")
# Of the others, so many seeds share a process.
CHUNK = 5
# Sweeps whose inputs in full are the same for every seed, as those of fixed clauses are: one seed is enough.
SWEEPS = ("IA-E-16", "IA-E-17", "IA-E-18", "IA-G-13")
# Clauses that end the process of an implementation: they are judged in one of its own.
ENDING = {"mlx": ("IA-S-13",)}
LIBRARIES = ("array-api-compat", "numpy", "hypothesis", "python-flint", "torch", "jax", "onnxruntime", "onnx", "keras")
PEERS = ("flax", "mlx", "openvino", "tinygrad")

# Elements are counted by floor(log2(error / bound)), from 2^-20 and below up to above the bound.
LEAST, MOST = -20, 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    what = parser.add_subparsers(dest="what", required=True)
    run = what.add_parser("run")
    run.add_argument("--seeds", type=int, default=20)
    run.add_argument("--profile", default="full", choices=("quick", "full"))
    run.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    run.add_argument("--only", nargs="*", default=[])
    some = what.add_parser("some")
    some.add_argument("--these", type=int, nargs="+", required=True)
    some.add_argument("--profile", required=True)
    some.add_argument("--names", nargs="+", required=True)
    report = what.add_parser("report")
    for sub in (run, some):
        sub.add_argument("--family", choices=("", *FAMILIES), default="")
    for sub in (run, some, report):
        sub.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    return {"run": run_all, "some": run_some, "report": write_report}[options.what](options)


def names_found() -> list[list[str]]:
    """What is judged, in groups that share a process, and with it drawn cases and their truths."""
    ours = [n for n in (*references(), *fast_paths(indirect_attention)) if has_device(n.partition("-")[2])]
    found = [*ours, *installed(every_backend=True)]
    compiled = [name for name in found if _compiles(name)]
    apart = [name for name in found if name.startswith(("keras-", "tinygrad")) and name not in compiled]
    together = [name for name in found if name not in (*compiled, *apart)]
    by_claims = [[n for n in compiled if n in ours], [n for n in compiled if n not in ours]]
    return [*filter(None, by_claims), *([name] for name in apart), together]


def run_all(options: argparse.Namespace) -> int:
    groups = [[n for n in group if not options.only or n in options.only] for group in names_found()]
    record, stopped = _record(options), False
    jobs = [(seeds, group) for group in groups if group for seeds in _chunks(group, options.seeds)]
    waiting = [(missing, group) for seeds, group in jobs if (missing := _missing(seeds, group, record, options))]
    with ThreadPoolExecutor(options.workers) as pool:
        running = [pool.submit(_start, *job, options) for job in waiting]
        try:
            for done, future in enumerate(as_completed(running), start=1):
                print(f"{done} of {len(waiting)}: {future.result()}", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            print("stopped; what is finished is kept", file=sys.stderr)
            stopped = True
    _write(options.out, _gathered(record, options))
    accused = write_report(options)
    wanted = {name: set(range(options.seeds)) for group in groups for name in group}
    missing = {n: sorted(seeds - set(record["found"].get(n, {"seeds": []})["seeds"])) for n, seeds in wanted.items()}
    for name, seeds in missing.items():
        if seeds:
            print(f"{name}: no verdict yet with seeds {', '.join(map(str, seeds))}")
    return 130 if stopped else int(bool(accused or any(missing.values())))


def _compiles(name: str) -> bool:
    return name.endswith("-jax") or name in COMPILED


def _chunks(group: list[str], seeds: int) -> list[range]:
    size = max(1, seeds) if _compiles(group[0]) else CHUNK
    return [range(start, min(start + size, seeds)) for start in range(0, seeds, size)]


def _part(seed: int, group: list[str], options: argparse.Namespace) -> Path:
    known = zlib.crc32(json.dumps([group, _about(options.profile, options.family)]).encode())
    return options.out.with_suffix(".parts") / f"{known:08x}-{seed}-{_short(group)}.json"


def _missing(seeds: Iterable[int], group: list[str], record: dict[str, Any], options: argparse.Namespace) -> list[int]:
    """The seeds that neither the record has of all in the group, nor a finished part."""
    found = record["found"]
    recorded = set.intersection(*(set(found.get(name, {"seeds": []})["seeds"]) for name in group))
    return [seed for seed in seeds if seed not in recorded and not _part(seed, group, options).exists()]


def _start(seeds: list[int], group: list[str], options: argparse.Namespace) -> str:
    words = [sys.executable, __file__, "some", "--profile", options.profile, "--out", str(options.out)]
    words += ["--family", options.family] if options.family else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if group[0].startswith("keras-"):
        environment["KERAS_BACKEND"] = group[0].removeprefix("keras-")
    began = time.monotonic()
    ended = subprocess.run(
        [*words, "--these", *map(str, seeds), "--names", *group],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    how = "done" if ended.returncode == 0 else f"exit status {ended.returncode}: {ended.stderr[-2000:]}"
    return f"seeds {seeds}, {_short(group)}: {how} ({time.monotonic() - began:.0f} s)"


def run_some(options: argparse.Namespace) -> int:
    """Some seeds of one group, in this process; each is written when it is finished."""
    catalogue = {**references(), **fast_paths(indirect_attention), **BUILTIN}
    implementations = [catalogue[name]() for name in options.names]
    for seed in options.these:
        began = time.monotonic()
        found: dict[str, Any] = {one.name: {"outcomes": {}, "histograms": {}, "worst": {}} for one in implementations}
        alarms: list[dict[str, Any]] = []
        # Clause by clause and dtype by dtype: what is drawn and its truth are still remembered.
        for clause in _clauses(options.family):
            if seed != options.these[0] and (clause.fixed or clause.label in SWEEPS):
                continue
            for dtype in DTYPES:
                for one in implementations:
                    # A family is judged in every dtype also in quick.
                    if dtype in dtypes_of(one, clause, "full" if options.family else options.profile):
                        _judge(one, clause.label, dtype, seed, options.profile, found[one.name], alarms)
        facts = {"seed": seed, "about": _about(options.profile, options.family), "found": found, "alarms": alarms}
        facts["seconds"] = round(time.monotonic() - began, 1)
        _write(_part(seed, options.names, options), facts)
    return 0


def _judge(
    one: Implementation,
    label: str,
    dtype: str,
    seed: int,
    profile: str,
    into: dict[str, Any],
    alarms: list[dict[str, Any]],
) -> None:
    counts: Counter[int] = Counter()

    def observe(comparison: Comparison) -> None:
        ratio = comparison.ratio.ravel()
        exponents = np.full(ratio.shape, LEAST)
        some = ratio > 2.0**LEAST
        exponents[some] = np.floor(np.log2(np.minimum(ratio[some], 2.0**MOST))).astype(int)
        counts.update(exponents.tolist())

    if label in ENDING.get(one.name, ()):
        with Worker(Recipe(one.name)) as worker:
            verdict = worker.judge(label, dtype, profile, seed)
    else:
        with observing(observe), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            verdict = judge(one, CLAUSES[label], profile=profile, seed=seed, dtype=dtype, shrink=False)
    outcomes = into["outcomes"].setdefault(dtype, {})
    outcomes[verdict.outcome] = outcomes.get(verdict.outcome, 0) + 1
    if verdict.bad:
        alarms.append({"implementation": one.name, "clause": label, "dtype": dtype, "text": "\n".join(verdict.lines())})
    if verdict.outcome == "pass" and verdict.margin is not None:
        histogram = into["histograms"].setdefault(dtype, {})
        for exponent, count in counts.items():
            histogram[str(exponent)] = histogram.get(str(exponent), 0) + count
        if verdict.margin > into["worst"].get(dtype, [0.0])[0]:
            into["worst"][dtype] = [verdict.margin, label]


def _record(options: argparse.Namespace) -> dict[str, Any]:
    """What FILE has so far; nothing, if it was found by other versions or in another profile."""
    about = _about(options.profile, options.family)
    new = {"date": datetime.date.today().isoformat(), **about, "found": {}, "alarms": []}
    if not options.out.exists():
        return new
    old = json.loads(options.out.read_text(encoding="utf-8"))
    return {**old, "date": new["date"]} if all(old.get(name) == value for name, value in about.items()) else new


@functools.cache
def _about(profile: str, family: str) -> dict[str, Any]:
    """What results belong to."""
    versions = {"python": platform.python_version()}
    for library in (*LIBRARIES, *PEERS):
        if importlib.util.find_spec(library.replace("-", "_").replace("python_flint", "flint")):
            versions[library] = importlib.metadata.version(library)
    code = hashlib.sha256()
    for folder in ("ia_core", "backends", "conformance"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            code.update(ast.dump(ast.parse(path.read_text(encoding="utf-8"))).encode())
    for path in sorted((ROOT / "backends/native").iterdir()):
        code.update(path.read_bytes())
    return {
        "machine": {"system": platform.system(), "processor": platform.machine(), "cpus": os.cpu_count()},
        "versions": versions,
        "code": code.hexdigest()[:16],
        "profile": profile,
        "clauses": len(_clauses(family)),
        **({"family": family} if family else {}),
        **({"IA_CORE_NATIVE": "0"} if os.environ.get("IA_CORE_NATIVE") == "0" else {}),
    }


def _clauses(family: str) -> list[Clause]:
    return [clause for clause in CLAUSES.values() if clause.family == (family or clause.family)]


def _gathered(record: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The record with all finished parts, each seed of an implementation once."""
    about = _about(options.profile, options.family)
    for path in sorted(options.out.with_suffix(".parts").glob("*.json")):
        part = json.loads(path.read_text(encoding="utf-8"))
        if part["about"] != about:
            continue
        for name, facts in part["found"].items():
            into = record["found"].setdefault(name, {"seeds": [], "outcomes": {}, "histograms": {}, "worst": {}})
            if part["seed"] in into["seeds"]:
                continue
            into["seeds"] = sorted([*into["seeds"], part["seed"]])
            for kind in ("outcomes", "histograms"):
                for dtype, counts in facts[kind].items():
                    total = Counter(into[kind].get(dtype, {})) + Counter(counts)
                    into[kind][dtype] = dict(sorted(total.items()))
            for dtype, worst in facts["worst"].items():
                into["worst"][dtype] = max(into["worst"].get(dtype, [0.0, ""]), worst)
            of_this = [alarm for alarm in part["alarms"] if alarm["implementation"] == name]
            record["alarms"] += [alarm | {"seed": part["seed"]} for alarm in of_this]
    return record


def write_report(options: argparse.Namespace) -> int:
    """The table and the figure of the results."""
    data = json.loads(options.out.read_text(encoding="utf-8"))
    of_family = f" of family {data['family']}, in every dtype" if "family" in data else ""
    switched = "With IA_CORE_NATIVE=0, without the kernel in C. " if "IA_CORE_NATIVE" in data else ""
    lines = [
        f"% Written by benchmarks/controls.py from docs/results/{options.out.name}.",
        "",
        f"{data['date']}, {data['machine']['cpus']} processors ({data['machine']['processor']}), "
        + ", ".join(f"{name} {version}" for name, version in data["versions"].items())
        + f". {switched}Profile {data['profile']}, {data['clauses']} clauses{of_family}.",
        "",
        "| implementation | seeds | dtype | pass | deviation | not supported | false alarms "
        "| compared | median | largest |",
        "| --- " * 10 + "|",
    ]
    for name, facts in data["found"].items():
        for dtype, outcomes in facts["outcomes"].items():
            counts = {int(e): n for e, n in facts["histograms"].get(dtype, {}).items()}
            bad = outcomes.get("fail", 0) + outcomes.get("unexpected pass", 0)
            worst, label = facts["worst"].get(dtype, [math.nan, ""])
            cells = [outcomes.get(kind, 0) for kind in ("pass", "deviation", "not supported")]
            middle = f"2^{_median(counts)}" if counts else ""
            row = [
                name,
                len(facts["seeds"]),
                dtype,
                *cells,
                bad,
                sum(counts.values()),
                middle,
                f"{worst:.2g} ({label})",
            ]
            lines.append("| " + " | ".join(str(cell) for cell in row) + " |")
    accused = [
        f"{a['implementation']}, {a['clause']}, {a['dtype']}, seed {a['seed']}: {a['text'].splitlines()[1]}"
        for a in data["alarms"]
    ]
    runs = sum(len(facts["seeds"]) * len(facts["outcomes"]) for facts in data["found"].values())
    nobody = f"Nobody was accused falsely, in {runs} runs of an implementation in a dtype."
    lines += ["", *([f"- {one}" for one in accused] or [nobody])]
    write_whole(ROOT / f"docs/generated/{options.out.stem}.md", "\n".join(lines) + "\n")
    if options.out == RESULTS:
        draw(data, ROOT / "docs/_static/margins.svg")
    for alarm in data["alarms"]:
        print(f"seed {alarm['seed']} {alarm['implementation']}: {alarm['text']}\n")
    print(f"{len(data['alarms'])} false alarms")
    return int(bool(data["alarms"]))


def draw(data: dict[str, Any], path: Path) -> None:
    """Error / bound of every compared element: one panel for each dtype, one line for each implementation."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "margins"
    from matplotlib import pyplot as plt

    dtypes = ("float64", "float32", "float16", "bfloat16")
    figure, panels = plt.subplots(2, 2, figsize=(9, 7.5), sharey=True, sharex=True, layout="constrained")
    colours = plt.get_cmap("tab10").colors
    styles = ("-", "--", ":")
    for n, (name, facts) in enumerate(data["found"].items()):
        look = {"color": colours[n % len(colours)], "ls": styles[n // len(colours)], "lw": 1}
        for dtype, panel in zip(dtypes, panels.ravel(), strict=True):
            counts = {int(e): n for e, n in facts["histograms"].get(dtype, {}).items()}
            total = sum(counts.values())
            places = range(LEAST, MOST)
            shares = [counts.get(e, 0) / total if total else float("nan") for e in places]
            panel.plot(places, shares, label=name, **look)
    for dtype, panel in zip(dtypes, panels.ravel(), strict=True):
        panel.axvline(0, color="#b3403a", lw=1)
        panel.set(title=dtype, yscale="log")
    for panel in panels[-1]:
        panel.set_xlabel("log2(error / bound)")
    figure.supylabel("share of the compared elements")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})


def _median(counts: dict[int, int]) -> int:
    total, seen = sum(counts.values()), 0
    for exponent in sorted(counts):
        seen += counts[exponent]
        if 2 * seen >= total:
            return exponent
    raise ValueError("no counts")


def _short(group: list[str]) -> str:
    return group[0] if len(group) == 1 else f"{group[0]}-and-{len(group) - 1}"


def _write(path: Path, data: Any) -> None:
    write_whole(path, json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
