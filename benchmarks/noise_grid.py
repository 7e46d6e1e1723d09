"""Every closed form of ia_core.noise against simulation, over a grid of widths, lengths, heads, sharpnesses and means.

    python benchmarks/noise_grid.py [--library numpy torch jax] [--precision 0.003] [--workers 2] [--out FILE]

For each length n the tokens, the other sequence and the noise are drawn once; all widths (which cut the same columns
into samples), heads, sharpnesses and means read them. The record has, for every comparison, how many standard errors
lie between simulation and theory.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

from ia_core import noise, simulate
from ia_core._arrays import array_namespace
from ia_core.conformance._libraries import from_library, has_device, to_library
from ia_core.simulate import Sampler
from ia_core.simulate._draws import place

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs/results/noise_grid.json"
WIDTHS, LENGTHS, HEADS = (4, 16, 64, 256), (1, 8, 64, 512), (1, 4, 8)
SHARPNESSES = (0.0, 1.0, 4.0)  # of normal scores: uniform, soft, nearly one-hot
MEANS = (0.0, 0.5)
SIGMA, SEED, LIMIT = 0.7, 20261125, 4.0
# Columns of a block: what a width of d cuts into columns / d samples. No verdict on the precision before LEAST samples.
COLUMNS, LEAST = {1: 2**17, 8: 2**17, 64: 2**16, 512: 2**14}, 256
# The slowest first.
PARTS = ("512", "others", "64", "8", "1")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--library", nargs="*", default=["numpy", "torch", "jax"])
    parser.add_argument("--precision", type=float, default=0.003)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    began = time.monotonic()
    jobs = [(library, part) for part in PARTS for library in filter(has_device, options.library)]
    rows: dict[str, list[dict[str, Any]]] = {library: [] for library, _ in jobs}
    # Blocks are of tens of MB: without this the C library gives each one back, and pages cost more than sums.
    os.environ |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "OMP_NUM_THREADS": "1"}
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(_rows, *job, options.precision): job for job in jobs}
        for future in as_completed(running):
            library, part = running[future]
            rows[library] += future.result()
            print(f"{time.monotonic() - began:.0f} s: {library}, {part}", flush=True)
    seconds = round(time.monotonic() - began, 1)
    records: dict[str, Any] = {}
    for library, some in rows.items():
        worst = max(some, key=lambda row: abs(row["off"]))
        beyond = [row for row in some if abs(row["off"]) > LIMIT]
        records[library] = {"comparisons": len(some), "worst": worst, "beyond": beyond}
        records[library]["histogram"] = np.histogram([abs(r["off"]) for r in some], np.arange(0, 6.5, 0.5))[0].tolist()
        print(f"{library}: {len(some)} comparisons, the farthest {worst}", flush=True)
    versions = {name: importlib.metadata.version(name) for name in ("numpy", *(n for n in records if n != "numpy"))}
    facts = {
        "date": datetime.date.today().isoformat(),
        "machine": {"processor": platform.machine(), "cpus": os.cpu_count()},
        "versions": {"python": platform.python_version(), **versions},
        "grid": {"d": WIDTHS, "n": LENGTHS, "heads": HEADS, "sharpness": SHARPNESSES, "mean": MEANS, "sigma": SIGMA},
        "precision": options.precision,
        "seconds": seconds,
        "workers": options.workers,
        "seed": SEED,
        "libraries": records,
    }
    unfinished = options.out.with_suffix(".new")
    unfinished.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(options.out)
    return int(any(record["beyond"] for record in records.values()))


def _rows(library: str, part: str, precision: float) -> list[dict[str, Any]]:
    if library == "torch":
        import torch

        torch.set_num_threads(1)
    return list(_others(library, precision) if part == "others" else _of_length(int(part), library, precision))


def _of_length(n: int, library: str, precision: float) -> Any:
    """Block by block for all widths that are not yet precise enough, so that they can share the block's draws."""
    products = _Products()
    made = {d: bundle(d, n, library, products) for d in WIDTHS}
    found: dict[int, simulate.Result] = {}
    waiting, index = list(WIDTHS), 0
    while waiting:
        for d in waiting:
            state = found[d].state if d in found else None
            found[d] = simulate.run(made[d][0], seed=SEED, blocks=[index], block_bytes=24 * n * COLUMNS[n], state=state)
        index += 1
        waiting = [d for d in waiting if found[d].samples < LEAST or found[d].precision > precision]
    for d in WIDTHS:
        yield from _offs(found[d], *made[d], {"d": d, "n": n})


def _others(library: str, precision: float) -> Any:
    for d, n in itertools.product((4, 16), (8, 64)):
        for what in ("key", "query"):
            rng = np.random.default_rng([SEED, d, n])
            arrays = [to_library(rng.standard_normal((2, *shape)), library) for shape in ((2, d), (n, d), (n, 3))]
            sampler = getattr(simulate, f"{what}_noise_energy")(*arrays, 0.01)
            names = [f"{what} noise, head {h}, row {m}" for h in range(2) for m in range(2)]
            yield from _compared(sampler, names, precision, {"d": d, "n": n})
    for d, mean_square in itertools.product((16, 64), (0.0, 1.0)):
        weights = np.stack([_weights(8, s, 8) for s in SHARPNESSES])
        sampler = simulate.depth_snr(to_library(weights, library), SIGMA, dim=d, mean_square=mean_square)
        yield from _compared(sampler, [f"depth, token {n}" for n in range(8)], precision, {"d": d, "mean": mean_square})


def _compared(sampler: Sampler, names: list[str], precision: float, where: dict[str, Any]) -> Any:
    yield from _offs(simulate.run(sampler, precision=precision, seed=SEED), sampler, names, where)


def _offs(found: simulate.Result, sampler: Sampler, names: list[str], where: dict[str, Any]) -> Any:
    wanted = np.ravel(from_library(sampler.theory)[0])
    off = (np.ravel(found.mean) - wanted) / np.ravel(found.standard_error)
    for name, value, distance in zip(names, wanted, off, strict=True):
        yield {**where, "what": name, "theory": float(value), "off": round(float(distance), 3)}


def _weights(rows: int, sharpness: float, n: int) -> np.ndarray:
    """Of normal scores; the sharpest are those of one token for n = 1, whatever they are."""
    scores = sharpness * np.random.default_rng([SEED, n, rows]).standard_normal((rows, n))
    raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


class _Products:
    """Weights times a block of normal numbers, three times: remembered for the block that was asked for last."""

    def __init__(self) -> None:
        self._key: Any = None
        self._kept: list[Any] = []

    def of(self, generator: Any, rows: Any, columns: int) -> list[Any]:
        """Three arrays (rows, columns)."""
        key = (str(generator.bit_generator.state["state"]), columns)
        if key != self._key:
            xp = array_namespace(rows)
            shape = (rows.shape[-1], columns)
            self._kept = [xp.matmul(rows, place(generator.standard_normal(shape), rows)) for _ in range(3)]
            self._key = key
        return self._kept


def bundle(d: int, n: int, library: str, products: _Products) -> tuple[Sampler, list[str]]:
    """All quantities of all heads and sharpnesses from the same draws; energies have a denominator of 1."""
    rng = np.random.default_rng([SEED, d, n])
    blocks, theory, names = [], [], []
    for H, sharpness in itertools.product(HEADS, SHARPNESSES):
        a = _weights(H, sharpness, n)
        V = rng.standard_normal((d, H * max(1, d // H))) / d**0.5
        blocks.append((a, V))
        arrays = [to_library(a[:, None, :], library), to_library(V, library)]
        for shift in MEANS:
            mean = to_library(np.full(d, shift), library)
            theory += [from_library(one)[0].item() for one in _closed_forms(*arrays, mean)]
            head = f"{H} heads, sharpness {sharpness:g}, mean {shift:g}: "
            names += [head + what for what in ("noise", "signal", "snr", "misalignment", "misalignment snr")]
    like = to_library(np.zeros(1), library)
    rows, maps = place(np.concatenate([a for a, _ in blocks]), like), [(len(a), place(V, like)) for a, V in blocks]
    sampler = Sampler(
        lambda g, count: _draw(products.of(g, rows, count * d), d, rows, maps),
        (len(names),),
        3 * n * d,
        np.asarray(theory),
    )
    return sampler, names


def _closed_forms(a: Any, V: Any, mean: Any) -> list[Any]:
    """Of one setting; the other sequence has minus three times the mean."""
    here: dict[str, Any] = {"value_projection": V}
    return [
        noise.multi_head_noise_energy(a, SIGMA, **here),
        noise.multi_head_signal_energy(a, mean=mean, **here),
        noise.multi_head_snr(a, SIGMA, mean=mean, **here),
        noise.multi_head_misalignment_energy(a, mean_x=mean, mean_y=-3 * mean, **here),
        noise.multi_head_misalignment_snr(a, mean_x=mean, mean_y=-3 * mean, **here),
    ]


def _draw(drawn: list[Any], d: int, rows: Any, maps: list[tuple[int, Any]]) -> tuple[Any, Any]:
    xp = array_namespace(rows)
    of_x, of_y, of_noise = (xp.reshape(z, (rows.shape[0], -1, d)) for z in drawn)
    sums = xp.sum(rows, axis=-1)[:, None, None]  # what a common mean is multiplied by
    over, under, at = [], [], 0
    for H, V in maps:
        some = slice(at, at + H)
        at += H
        V3 = xp.permute_dims(xp.reshape(V, (d, H, -1)), (1, 0, 2))
        x, moved, noisy = (xp.matmul(o[some, ...], V3) for o in (of_x, of_y - of_x, SIGMA * of_noise))
        mean = sums[some, ...] * xp.sum(V3, axis=1, keepdims=True)  # of a mean of 1 in every component
        noise_energy = xp.sum(noisy**2, axis=(0, 2))  # (count,)
        one = xp.ones_like(noise_energy)
        for shift in MEANS:
            signal = xp.sum((x + shift * mean) ** 2, axis=(0, 2))
            gamma = xp.sum((moved - 4 * shift * mean) ** 2, axis=(0, 2))
            over += [noise_energy, signal, signal, gamma, signal]
            under += [one, one, noise_energy, one, gamma]
    return xp.stack(over, axis=-1), xp.stack(under, axis=-1)


if __name__ == "__main__":
    sys.exit(main())
