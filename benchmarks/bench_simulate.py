"""Throughput of ia_core.simulate against the array operations that it cannot do without.

    python benchmarks/bench_simulate.py [--rounds 9] [--library numpy torch jax] [--only TEXT] [--out FILE]

The plain code draws the same normal numbers, in blocks of as many samples, moves them to the library, computes what the
sampler's formula says in plain array operations, and adds up values and squares. All samplers, few rows and many, small
blocks and large ones. Both are run in turn; the record has medians, ranges and their ratio.

Attention with noise on its keys or queries is that of the reference in both, ia_core.indirect_attention.

Small blocks are of 256 KB, or of 16 samples if these are larger; large ones of 32 MB, the default. In blocks of a few
KB the time goes to the interpreter, some 0.1 ms a block, and not to the arrays: no such block is here, as none but a
test has a reason to use one.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import itertools
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

from ia_core import indirect_attention, simulate
from ia_core._arrays import array_namespace
from ia_core.conformance._files import write_whole
from ia_core.conformance._libraries import from_library, has_device, to_library
from ia_core.simulate import Sampler
from ia_core.simulate._draws import place
from ia_core.simulate._run import block_size

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs/results/simulate_times.json"
N, D, H, SIGMA, LAYERS = 64, 32, 4, 0.5, 2
ROWS, BLOCK_BYTES = {"few": 8, "many": 512}, {"small": 2**18, "large": 2**25}
SECONDS, LIMIT = 0.3, 1.3
# A function of the normal numbers' generator and the count of samples, which gives the components.
Draw = Callable[[Any, int], list[Any]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--library", nargs="*", default=["numpy", "torch", "jax"])
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for library, rows, size, name in itertools.product(filter(has_device, options.library), ROWS, BLOCK_BYTES, CASES):
        case = f"{library}, {name}, {rows} rows, {size} blocks"
        if options.only in case:
            sampler, draw = CASES[name](lambda array, library=library: to_library(array, library), ROWS[rows])
            block_bytes = max(BLOCK_BYTES[size], 16 * 8 * sampler.numbers)
            results[case] = _measured(sampler, draw, block_bytes, options.rounds)
            print(f"{case}: {results[case]['ratio']:.2f} times the plain operations", flush=True)
    facts: dict[str, Any] = {"date": datetime.date.today().isoformat(), "python": platform.python_version()}
    facts |= {"cpus": os.cpu_count(), "processor": platform.machine(), "n": N, "d": D, "heads": H, "rows": ROWS}
    facts |= {name: importlib.metadata.version(name) for name in ("numpy", *{key.partition(",")[0] for key in results})}
    write_whole(options.out, json.dumps({"environment": facts, "results": results}, indent=1) + "\n")
    return int(any(one["ratio"] > LIMIT for one in results.values()))


def _measured(sampler: Sampler, draw: Draw, block_bytes: int, rounds: int) -> dict[str, Any]:
    """Seconds of both, and the median of their ratios; each over so many blocks that a clock can tell."""
    count = block_size(sampler, block_bytes)
    for _ in range(2):  # the second without what is made once
        began = time.perf_counter()
        _plain(draw, count, 1)
        blocks = max(2, round(SECONDS / (time.perf_counter() - began)))
    both: dict[str, Callable[[], Any]] = {
        "plain": lambda: _plain(draw, count, blocks),
        "simulate": lambda: simulate.run(sampler, blocks=range(blocks), block_bytes=block_bytes, most=2**62),
    }
    seconds: dict[str, list[float]] = {name: [] for name in both}
    for call in both.values():
        call()
    for _ in range(rounds):
        for name, call in both.items():
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    ratio = statistics.median(s / p for s, p in zip(seconds["simulate"], seconds["plain"], strict=True))
    return {
        "ratio": round(ratio, 3),
        "block_bytes": block_bytes,
        "samples": count,
        "blocks": blocks,
        "seconds": seconds,
    }


def _plain(draw: Draw, count: int, blocks: int) -> list[Any]:
    """Sums of the components, and of the products of two."""
    sums: list[Any] = []
    for index in range(blocks):
        generator = np.random.Generator(np.random.SFC64([0, index]))
        values = [from_library(one)[0] for one in draw(generator, count)]
        pairs = itertools.combinations_with_replacement(values, 2)
        found = [one.sum(axis=0) for one in values]
        found += [np.einsum("s...,s...->...", one, other) for one, other in pairs]
        sums = found if not sums else [x + y for x, y in zip(sums, found, strict=True)]
    return sums


def _weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.ones(shape[-1]), size=shape[:-1])


def _squares(x: Any) -> Any:
    return np.vecdot(x, x) if isinstance(x, np.ndarray) else array_namespace(x).sum(x * x, axis=-1)


def _normal(generator: Any, like: Any, *shape: int, mean: float = 0.0) -> Any:
    z = generator.standard_normal(shape)
    if mean:
        z += mean
    return place(z, like)


def _one_head(name: str) -> Callable[[Any, int], tuple[Sampler, Draw]]:
    """Noise, signal and misalignment of rows of weights; the tokens have a mean."""

    def make(put: Any, rows: int) -> tuple[Sampler, Draw]:
        a, ones = put(_weights(rows, N)), np.ones(D)
        xp = array_namespace(a)
        keywords: dict[str, Any] = {"noise_energy": {"dim": D}, "misalignment_energy": {"mean_x": put(ones)}}.get(
            name, {"mean_x" if name == "misalignment_snr" else "mean": put(ones)}
        )
        sigma = [SIGMA] if name in ("noise_energy", "snr") else []

        scaled = SIGMA * a

        def draw(generator: Any, count: int) -> list[Any]:
            if name == "noise_energy":
                return [_squares(xp.matmul(scaled, _normal(generator, a, count, N, D)))]
            x = _normal(generator, a, count, N, D, mean=1.0)
            signal = [] if name == "misalignment_energy" else [_squares(xp.matmul(a, x))]
            if name == "signal_energy":
                return signal
            other = _normal(generator, a, count, N, D)
            return [*signal, _squares(xp.matmul(scaled, other) if name == "snr" else xp.matmul(a, other - x))]

        return getattr(simulate, name)(a, *sigma, **keywords), draw

    return make


def _heads(name: str) -> Callable[[Any, int], tuple[Sampler, Draw]]:
    def make(put: Any, rows: int) -> tuple[Sampler, Draw]:
        a = put(_weights(H, rows, N))
        xp = array_namespace(a)

        def output(x: Any) -> Any:
            by_head = xp.permute_dims(xp.reshape(x, (-1, N, H, D // H)), (0, 2, 1, 3))
            heads = xp.permute_dims(xp.matmul(a, by_head), (0, 2, 1, 3))
            return xp.reshape(heads, (x.shape[0], rows, D))

        def draw(generator: Any, count: int) -> list[Any]:
            x, other = (_normal(generator, a, count, N, D) for _ in range(2))
            if name == "multi_head_snr":
                other *= SIGMA
            return [_squares(output(x)), _squares(output(other if name == "multi_head_snr" else other - x))]

        return getattr(simulate, name)(a, *([SIGMA] if name == "multi_head_snr" else []), dim=D), draw

    return make


def _scores(what: str) -> Callable[[Any, int], tuple[Sampler, Draw]]:
    """Attention twice, with the noise and with its opposite."""

    def make(put: Any, rows: int) -> tuple[Sampler, Draw]:
        rng = np.random.default_rng(0)
        query, key, value = (put(rng.standard_normal((H, n, D))) for n in (rows // 4, N, N))
        xp = array_namespace(query)

        clean = indirect_attention(query, key, value)

        def draw(generator: Any, count: int) -> list[Any]:
            shape = query.shape if what == "query" else key.shape
            moved = 0.1 * _normal(generator, query, count, *shape)
            inputs = {"query": query, "key": key, "value": value}
            spread = {name: xp.broadcast_to(array, (count, *array.shape)) for name, array in inputs.items()}
            total = 0.0
            for sign in (1.0, -1.0):
                noisy = spread | {what: inputs[what] + sign * moved}
                total = total + _squares(indirect_attention(**noisy) - clean) / 2
            return [total]

        return getattr(simulate, f"{what}_noise_energy")(query, key, value, 0.1), draw

    return make


def _depth(put: Any, rows: int) -> tuple[Sampler, Draw]:
    tokens = rows // 8 + 7
    a = put(_weights(LAYERS, tokens, tokens))
    xp = array_namespace(a)

    def draw(generator: Any, count: int) -> list[Any]:
        signal = _normal(generator, a, count, tokens, D, mean=1.0)
        noise = SIGMA * _normal(generator, a, count, tokens, D)
        for layer in range(LAYERS):
            W = _normal(generator, a, count, D, D) / D**0.5
            signal, noise = (x + xp.matmul(xp.matmul(a[layer, ...], x), W) for x in (signal, noise))
        return [_squares(signal), _squares(noise)]

    return simulate.depth_snr(a, SIGMA, dim=D, mean_square=1.0), draw


CASES: dict[str, Callable[[Any, int], tuple[Sampler, Draw]]] = {
    **{n: _one_head(n) for n in ("noise_energy", "signal_energy", "snr", "misalignment_energy", "misalignment_snr")},
    **{n: _heads(n) for n in ("multi_head_snr", "multi_head_misalignment_snr")},
    **{f"{what}_noise_energy": _scores(what) for what in ("key", "query")},
    "depth_snr": _depth,
}

if __name__ == "__main__":
    sys.exit(main())
