"""Time of a conformance run on torch SDPA, as whole commands: quick in float32, full in four dtypes with gradients.

    python benchmarks/bench_conform.py [--rounds 7] [--json FILE]

Each command is started anew, imports and worker processes included. The table has the median and the range.
"""

from __future__ import annotations

import argparse
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

COMMANDS = {
    "quick, float32": (["torch-sdpa", "--dtypes", "float32"], 30),
    "full, four dtypes": (["torch-sdpa", "--profile", "full"], 300),
    "quick, float32, JAX": (["jax-dpa", "--dtypes", "float32"], None),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for name, (words, limit) in COMMANDS.items():
        seconds = [_seconds(words) for _ in range(options.rounds)]
        middle = statistics.median(seconds)
        results[name] = {"seconds": seconds, "median": middle, "limit": limit}
        allowed = "" if limit is None else f", to be below {limit}"
        print(f"{name:22}{middle:8.1f} s ({min(seconds):.1f} to {max(seconds):.1f}){allowed}", flush=True)
    if options.json:
        facts = {"python": platform.python_version(), "cpus": os.cpu_count()}
        facts |= {name: importlib.metadata.version(name) for name in ("numpy", "torch", "jax", "hypothesis")}
        options.json.write_text(json.dumps({"environment": facts, "results": results}, indent=1), encoding="utf-8")
    return int(any(r["limit"] is not None and r["median"] >= r["limit"] for r in results.values()))


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
