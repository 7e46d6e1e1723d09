"""Time of the dispatch beside the reference, forward, for every library that is installed.

    python benchmarks/bench_dispatch.py [--rounds 9] [--sizes 256 1024] [--libraries numpy torch jax] [--json FILE]

In every round each case is timed on the reference and on the fast path, one right after the other and in an order
that changes, so that a busy moment of the machine is in both. A ratio is taken within a round; the table has the
median of the rounds' ratios and their quartiles. One call warms each up, and for JAX compiles it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _machine import environment, interleaved

import ia_core
from ia_core.backends import explain, indirect_attention

HEADS, WIDTH, HIDDEN = 8, 64, 16
CASES = ("plain", "dense bias", "causal mask", "position bias", "lse")


def main() -> None:
    options = _options()
    facts = environment(options.libraries)
    if hasattr(os, "getloadavg"):
        facts["load before"] = f"{os.getloadavg()[0]:.2f}"
    print("\n".join(f"{name}: {what}" for name, what in facts.items()))
    print(f"float32, 1 x {HEADS} heads, M = N, D = Dv = {WIDTH}, OffsetMLP of {HIDDEN} hidden units, no gradients\n")
    print(f"{'library':8}{'case':15}{'N':>6}  {'path':13}{'reference':>11}{'fast':>11}{'ratio':>8}  quartiles")
    results = []
    for library in options.libraries:
        for N in options.sizes:
            results += measure(library, N, options.rounds)
    if options.json:
        options.json.write_text(json.dumps({"environment": facts, "results": results}, indent=1), encoding="utf-8")


def measure(library: str, N: int, rounds: int) -> list[dict[str, Any]]:
    """Every case of one library and size, a line printed for each."""
    give, wait = LIBRARIES[library]()
    found = []
    for case in CASES:
        arrays, keywords = arguments(case, N, give)
        calls = {
            name: _waiting(function, arrays, keywords, wait)
            for name, function in (("reference", ia_core.indirect_attention), ("fast", indirect_attention))
        }
        for call in calls.values():
            call()
        seconds = interleaved(calls, rounds)
        ratios = [slow / fast for slow, fast in zip(seconds["reference"], seconds["fast"], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        one = {
            "library": library,
            "case": case,
            "N": N,
            "path": explain(*arrays, **keywords).path,
            "seconds": {name: statistics.median(times) for name, times in seconds.items()},
            "ratio": {"median": statistics.median(ratios), "quartiles": [low, high]},
        }
        found.append(one)
        times = "".join(f"{1e3 * one['seconds'][name]:9.2f}ms" for name in calls)
        ratio = f"{one['ratio']['median']:8.2f}  {low:.2f} .. {high:.2f}"
        print(f"{library:8}{case:15}{N:6}  {one['path']:13}{times}{ratio}", flush=True)
    return found


def arguments(case: str, N: int, give: Callable[[Any], Any]) -> tuple[list[Any], dict[str, Any]]:
    """The arrays and keywords of a case, the same numbers for every library."""
    random = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return give(random.normal(size=shape).astype(np.float32))

    arrays = [draw(1, HEADS, N, WIDTH) for _ in range(3)]
    if case == "dense bias":
        return arrays, {"bias": draw(HEADS, N, N)}
    if case == "causal mask":
        return arrays, {"mask": give(np.tri(N, dtype=bool))}
    if case == "position bias":
        f = ia_core.OffsetMLP(draw(HIDDEN), draw(HIDDEN), draw(HIDDEN, HEADS), draw(HEADS))
        return arrays, {"bias": ia_core.PositionBias(f, give(np.arange(N)), give(np.arange(N)))}
    return arrays, {"return_lse": True} if case == "lse" else {}


def _waiting(
    function: Callable[..., Any], arrays: list[Any], keywords: dict[str, Any], wait: Callable[[Any], Any]
) -> Callable[[], Any]:
    return lambda: wait(function(*arrays, **keywords))


def _numpy() -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    return np.asarray, lambda result: result


def _torch() -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    import torch

    return torch.from_numpy, lambda result: result


def _jax() -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    import jax

    return jax.numpy.asarray, jax.block_until_ready


def _cupy() -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    import cupy

    def wait(result: Any) -> Any:
        cupy.cuda.get_current_stream().synchronize()
        return result

    return cupy.asarray, wait


LIBRARIES = {"numpy": _numpy, "torch": _torch, "jax": _jax, "cupy": _cupy}


def _options() -> argparse.Namespace:
    installed = [name for name in LIBRARIES if importlib.util.find_spec(name)]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="at least 7")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--libraries", nargs="+", choices=list(LIBRARIES), default=installed)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    if options.rounds < 7:
        parser.error("fewer than 7 rounds say nothing about the spread")
    return options


if __name__ == "__main__":
    main()
