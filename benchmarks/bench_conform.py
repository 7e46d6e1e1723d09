"""Time of a conformance run as a whole command: of torch SDPA quick in float32, and full in four dtypes with gradients;
of jax.nn.dot_product_attention quick in float32.

    python benchmarks/bench_conform.py [--rounds 7]

Each command is started anew, imports and worker processes included, the commands in turn. The median and the range go
to docs/results/conform_times.json, the table to docs/generated/conform_times.md.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ia_core.conformance import CLAUSES

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "docs/results/conform_times.json", ROOT / "docs/generated/conform_times.md"
COMMANDS: dict[str, tuple[list[str], int | None]] = {
    "quick, float32": (["torch-sdpa", "--dtypes", "float32"], 30),
    "full, four dtypes": (["torch-sdpa", "--profile", "full"], 300),
    # No limit is set for JAX, which compiles for every shape.
    "quick, float32, JAX": (["jax-dpa", "--dtypes", "float32"], None),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for n in range(options.rounds):
        for name, (words, _) in COMMANDS.items():
            seconds[name].append(round(_seconds(words), 2))
            print(f"round {n + 1} of {options.rounds}: {name} {seconds[name][-1]} s", flush=True)
    facts: dict[str, Any] = {"date": datetime.date.today().isoformat(), "python": platform.python_version()}
    facts |= {"cpus": os.cpu_count(), "processor": platform.machine()}
    facts |= {name: importlib.metadata.version(name) for name in ("numpy", "torch", "jax", "hypothesis")}
    facts["clauses"] = len(CLAUSES)
    results = {
        name: {"command": ["ia-core", "conform", *words], "seconds": seconds[name], "limit": limit}
        for name, (words, limit) in COMMANDS.items()
    }
    _write(RESULTS, json.dumps({"environment": facts, "results": results}, indent=1) + "\n")
    rows = [f"{', '.join(f'{name} {value}' for name, value in facts.items())}; {options.rounds} rounds.", ""]
    rows += ["| command | median | range | to be below |", "| --- | --- | --- | --- |"]
    for one in results.values():
        middle = statistics.median(one["seconds"])
        of_limit = "" if one["limit"] is None else f"{one['limit']} s"
        spread = f"{min(one['seconds']):.1f} to {max(one['seconds']):.1f} s"
        rows.append(f"| `{' '.join(one['command'])}` | {middle:.1f} s | {spread} | {of_limit} |")
    _write(PAGE, "\n".join(rows) + "\n")
    return int(any(r["limit"] is not None and statistics.median(r["seconds"]) >= r["limit"] for r in results.values()))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(path.suffix + ".new")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def _seconds(words: list[str]) -> float:
    start = time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-m", "ia_core._cli", "conform", *words], capture_output=True, text=True, check=False
    )
    if run.returncode != 0:
        raise RuntimeError(f"the run did not pass:\n{run.stdout[-3000:]}{run.stderr[-3000:]}")
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
