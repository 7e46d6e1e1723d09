"""Throughput of ia_core.simulate against the array operations that it cannot do without.

    python benchmarks/bench_simulate.py [--rounds 9] [--library numpy torch jax]

The plain code draws the same normal numbers, moves them to the library, multiplies them by the weights, sums squares,
block by block. Both are run in turn; the record has medians, ranges and their ratio.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ia_core import simulate
from ia_core._arrays import array_namespace
from ia_core.conformance._libraries import from_library, has_device, to_library
from ia_core.simulate._draws import place

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs/results/simulate_times.json"
SIZES = {"d 64, n 64": (64, 64), "d 256, n 512": (256, 512), "d 4, n 8": (4, 8)}
ROWS, BLOCKS, BLOCK_BYTES, LIMIT = 8, 4, 2**25, 1.3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--library", nargs="*", default=["numpy", "torch", "jax"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for library in filter(has_device, options.library):
        for size, (d, n) in SIZES.items():
            both = _both(library, d, n)
            seconds: dict[str, list[float]] = {name: [] for name in both}
            for call in both.values():
                call()
            for _ in range(options.rounds):
                for name, call in both.items():
                    began = time.perf_counter()
                    call()
                    seconds[name].append(time.perf_counter() - began)
            ratio = statistics.median(s / p for s, p in zip(seconds["simulate"], seconds["plain"], strict=True))
            results[f"{library}, {size}"] = {"ratio": round(ratio, 3), "seconds": seconds}
            print(f"{library}, {size}: {ratio:.2f} times the plain operations", flush=True)
    facts: dict[str, Any] = {"date": datetime.date.today().isoformat(), "python": platform.python_version()}
    facts |= {"cpus": os.cpu_count(), "processor": platform.machine(), "block_bytes": BLOCK_BYTES}
    facts |= {name: importlib.metadata.version(name) for name in ("numpy", *{key.partition(",")[0] for key in results})}
    unfinished = options.out.with_suffix(".new")
    unfinished.write_text(json.dumps({"environment": facts, "results": results}, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(options.out)
    return int(any(one["ratio"] > LIMIT for one in results.values()))


def _both(library: str, d: int, n: int) -> dict[str, Callable[[], Any]]:
    a = np.random.default_rng(0).dirichlet(np.ones(n), size=ROWS)
    weights = to_library(a, library)
    sampler = simulate.noise_energy(weights, 0.5, dim=d)
    count = min(BLOCK_BYTES // (8 * n * d), 2**16)

    def plain() -> Any:
        xp, total, squares = array_namespace(weights), np.zeros(ROWS), np.zeros(ROWS)
        for index in range(BLOCKS):
            generator = np.random.Generator(np.random.SFC64([0, index]))
            z = place(generator.standard_normal((count, n, d)), weights)
            out = 0.5 * xp.matmul(weights, z)
            values, _ = from_library(xp.sum(out * out, axis=-1))
            total, squares = total + values.sum(axis=0), squares + (values * values).sum(axis=0)
        return total, squares

    return {
        "plain": plain,
        "simulate": lambda: simulate.run(sampler, blocks=range(BLOCKS), block_bytes=BLOCK_BYTES),
    }


if __name__ == "__main__":
    sys.exit(main())
