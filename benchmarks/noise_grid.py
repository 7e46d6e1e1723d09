"""The closed forms of ia_core.noise against simulation, on NumPy, PyTorch and JAX.

    python benchmarks/noise_grid.py [--library numpy torch jax] [--part 8 general] [--precision 0.003] [--workers 2]

1, 8, 64, 512  Numbers of tokens. White noise, unit variances; all widths, head counts, sharpnesses and means. Tokens,
               the other sequence and the noise are drawn once for each, and every setting reads them.
general        One and four heads with anisotropic covariances of tokens and noise, sequences that are aligned in part,
               value and output projections. A covariance multiplies every token by a matrix, which takes longer: three
               pairs of d and n. The forms see n through overlaps of weights and d through traces alone.
scores         Noise on keys and queries, of first order, at a small sigma, two heads, three sharpnesses; and depth.

What is not here is tied to what is, without sampling, by tests/test_noise_relations.py. Every library and part has
random numbers of its own; within a part comparisons share them. Writes docs/results/noise_grid.json and
docs/generated/noise_grid.md; with a choice of libraries or parts, or another precision, both into build.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ia_core import noise, simulate
from ia_core._arrays import array_namespace, device
from ia_core.conformance._files import write_whole
from ia_core.conformance._libraries import from_library, has_device, to_library
from ia_core.simulate import Sampler

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs/results/noise_grid.json"
CODE = ("ia_core/noise", "ia_core/simulate", "benchmarks/noise_grid.py")
LIBRARIES = ["numpy", "torch", "jax"]
WIDTHS, LENGTHS, HEADS = (4, 16, 64, 256), (1, 8, 64, 512), (1, 4, 8)
SHARPNESSES, MEANS = (0.0, 1.0, 4.0), (0.0, 0.5)  # sharpnesses of normal scores: uniform, soft, nearly one-hot
SIGMA, SEED, LIMIT, PRECISION = 0.7, 20261126, 4.0, 0.003
GENERAL, GENERAL_HEADS = ((4, 64), (16, 8), (64, 8)), 4  # d, n
# d, n. What a sample of noise on the keys is, d n numbers, and a layer's d d, keep them few.
SCORES = {"key": ((4, 512), (16, 64), (64, 8)), "query": ((4, 8), (16, 64), (64, 8), (256, 64))}
# Forms of first order: the second is about (sharpness * sigma)^2 of it.
SCORE_SHARPNESSES, SCORE_SIGMA = (0.25, 0.5, 1.0), 0.01
DEPTH = ((4, 8, 1.0), (16, 1, 1.0), (16, 64, 1.0), (64, 8, 0.0), (64, 8, 1.0))  # d, n, square of the mean
# Columns of a block: what a width of d cuts into columns / d samples. No verdict on the precision before LEAST samples.
COLUMNS, LEAST = {1: 2**17, 8: 2**17, 64: 2**16, 512: 2**14}, 256
PARTS = ["512", "scores", "64", "8", "general", "1"]  # the slowest first
Group = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--library", nargs="*", default=LIBRARIES)
    parser.add_argument("--part", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--precision", type=float, default=PRECISION)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    mine = (options.library, options.part, options.precision) != (LIBRARIES, PARTS, PRECISION)
    began, code, busy = time.monotonic(), code_hashes(), 0.0
    jobs = [(library, part) for part in options.part for library in filter(has_device, options.library)]
    groups: dict[str, list[Group]] = {library: [] for library, _ in jobs}
    # Blocks are of tens of MB: without this the C library gives each one back, and pages cost more than sums.
    os.environ |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "OMP_NUM_THREADS": "1"}
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(_part, *job, options.precision): job for job in jobs}
        for future in as_completed(running):
            library, part = running[future]
            some, seconds = future.result()
            groups[library] += some
            busy += seconds
            print(f"{time.monotonic() - began:.0f} s: {library}, {part} ({seconds:.0f} s of a processor)", flush=True)
    if code_hashes() != code:
        print("the code changed meanwhile: nothing is written", file=sys.stderr)
        return 2
    facts = {
        "date": datetime.date.today().isoformat(),
        "machine": {"system": platform.system(), "processor": platform.machine(), "cpus": os.cpu_count()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("numpy", *groups)}},
        "code": code,
        "grid": {"d": WIDTHS, "n": LENGTHS, "heads": HEADS, "sharpness": SHARPNESSES, "mean": MEANS, "sigma": SIGMA},
        "parts": options.part,
        "precision": options.precision,
        "seconds": round(time.monotonic() - began, 1),
        "processor_seconds": round(busy, 1),
        "workers": options.workers,
        "seed": SEED,
        "libraries": {library: _record(some) for library, some in groups.items()},
    }
    return _written(facts, mine)


def code_hashes() -> dict[str, str]:
    """SHA-256 of what was measured and of what measured it."""
    files = {name: sorted((ROOT / name).rglob("*.py")) or [ROOT / name] for name in CODE}
    texts = {name: [path.name.encode() + b"\0" + path.read_bytes() for path in some] for name, some in files.items()}
    return {name: hashlib.sha256(b"".join(some)).hexdigest() for name, some in texts.items()}


def _record(groups: list[Group]) -> dict[str, Any]:
    """Of one library: what lies how far off, and of every group how many samples gave which precision."""
    rows = [{k: g[k] for k in ("part", "d", "n") if k in g} | row for g in groups for row in g["rows"]]
    off = [abs(row["off"]) for row in rows]
    for group in groups:
        some = [abs(row["off"]) for row in group.pop("rows")]
        group |= {"comparisons": len(some), "farthest": max(some, default=None)}
    return {
        "comparisons": len(rows),
        "values": len({f"{row['theory']:.10g}" for row in rows}),  # that the closed forms take, distinct ones
        "forms": dict(sorted(Counter(row["form"] for row in rows).items())),
        "worst": max(rows, key=lambda row: abs(row["off"]), default=None),
        "beyond": [row for row in rows if abs(row["off"]) > LIMIT],
        "histogram": np.histogram(off, np.arange(0, 6.5, 0.5))[0].tolist(),
        "groups": groups,
    }


def _part(library: str, part: str, precision: float) -> tuple[list[Group], float]:
    """Groups of comparisons, and the seconds that they took of a processor."""
    if library == "torch":
        import torch

        torch.set_num_threads(1)
    began = time.process_time()
    others = {"general": _general, "scores": _scores}
    found = others[part](library, precision) if part in others else _of_length(int(part), library, precision)
    return [{"part": part, **group} for group in found], time.process_time() - began


def _seed(*words: Any) -> int:
    """Another one for every library, part and setting."""
    return int.from_bytes(hashlib.sha256(repr((SEED, *words)).encode()).digest()[:6])


def _of_length(n: int, library: str, precision: float) -> Any:
    """Block by block for all widths that are not yet precise enough, so that they can share the block's draws."""
    kept: dict[Any, Any] = {}
    made = {d: bundle(d, n, library, kept) for d in WIDTHS}
    found: dict[int, simulate.Result] = {}
    waiting, index = list(WIDTHS), 0
    options: dict[str, Any] = {"seed": _seed(library, n), "block_bytes": 24 * n * COLUMNS[n]}
    while waiting:
        for d in waiting:
            state = found[d].state if d in found else None
            found[d] = simulate.run(made[d][0], blocks=[index], state=state, **options)
        index += 1
        waiting = [d for d in waiting if found[d].samples < LEAST or found[d].precision > precision]
    for d in WIDTHS:
        yield _group(found[d], *made[d], d=d, n=n)


def _general(library: str, precision: float) -> Any:
    """The energy above, the energy below and their quotient, for one head and for several."""
    for (d, n), prefix in itertools.product(GENERAL, ("", "multi_head_")):
        covariance, pairs, weights, W = _moments(d, n, library, prefix)
        x = {"mean": pairs["mean_x"], "covariance": pairs["covariance_x"]} | W
        c, pairs = {"noise_covariance": covariance}, pairs | W
        signal = getattr(noise, f"{prefix}signal_energy")(weights, **x)
        energy = getattr(noise, f"{prefix}noise_energy")(weights, SIGMA, **c, **W)
        gamma = getattr(noise, f"{prefix}misalignment_energy")(weights, **pairs)
        snr = _apart(getattr(simulate, f"{prefix}snr")(weights, SIGMA, **x, **c), signal, energy)
        misaligned = _apart(getattr(simulate, f"{prefix}misalignment_snr")(weights, **pairs), signal, gamma)
        for what, sampler in (("noise", snr), ("misalignment", misaligned)):
            ratio = "snr" if what == "noise" else "misalignment_snr"
            forms = [prefix + one for one in ("signal_energy", f"{what}_energy", ratio) for _ in range(3)]
            names = [f"row {m}" for m in (0, 1, 2)] * 3
            yield _compared(sampler, names, forms, precision, library, d=d, n=n, what=prefix + what)


def _moments(d: int, n: int, library: str, prefix: str) -> tuple[Any, dict[str, Any], Any, dict[str, Any]]:
    """Noise covariance, moments of pairs that are aligned in part, weights (a row for each sharpness), projections.

    y is 0.8 x and something of its own, so the cross-covariance is not symmetric.
    """
    rng, H = np.random.default_rng([SEED, d, n, 1]), GENERAL_HEADS
    means, (F, own) = rng.standard_normal((2, d)), rng.standard_normal((2, d, 2 * d)) / (2 * d) ** 0.5
    G, noisy, W, out = 0.8 * F + 0.6 * own, *rng.standard_normal((3, d, d)) / d**0.5
    pairs = {"mean_x": means[0], "mean_y": means[1], "covariance_x": F @ F.T, "covariance_y": G @ G.T}
    pairs["cross_covariance"] = F @ G.T
    weights = np.stack([_weights(H, s, n) for s in SHARPNESSES], axis=1)  # (H, M, n)
    projections = {"value_projection": W, "output_projection": out[:, : d - 1]} if prefix else {"projection": W}
    put = [{k: to_library(v, library) for k, v in arrays.items()} for arrays in (pairs, projections)]
    return to_library(noisy @ noisy.T, library), put[0], to_library(weights if prefix else weights[0], library), put[1]


def _apart(sampler: Sampler, over: Any, under: Any) -> Sampler:
    """Of a quotient: both energies, and it itself, so that a factor which it loses is seen."""

    def draw(generator: Any, count: int) -> tuple[Any, Any]:
        above, below = sampler.draw(generator, count)
        xp, one = array_namespace(above), array_namespace(above).ones_like(above)
        return xp.stack([above, below, above], axis=1), xp.stack([one, one, below], axis=1)

    theory = np.stack([from_library(one)[0] for one in (over, under, sampler.theory)])
    return Sampler(draw, theory.shape, sampler.numbers + 8 * theory.size, theory)


def _scores(library: str, precision: float) -> Any:
    for what, pairs in SCORES.items():
        for d, n in pairs:
            rng = np.random.default_rng([SEED, d, n])
            # Scores are as sharp as their query is long; at 0 noise on the keys would do nothing.
            query = np.asarray(SCORE_SHARPNESSES)[:, None] * rng.standard_normal((2, 1, d))
            arrays = [to_library(one, library) for one in (query, *(rng.standard_normal((2, n, w)) for w in (d, 8)))]
            sampler = getattr(simulate, f"{what}_noise_energy")(*arrays, SCORE_SIGMA)
            names = [f"head {h}, sharpness {s:g}" for h in range(2) for s in SCORE_SHARPNESSES]
            forms = [f"{what}_noise_energy"] * len(names)
            yield _compared(sampler, names, forms, precision, library, d=d, n=n, what=what)
    for d, n, square in DEPTH:
        weights = np.stack([_weights(n, s, n) for s in SHARPNESSES])
        gain = 1.0 if d == 16 else 0.6
        sampler = simulate.depth_snr(to_library(weights, library), SIGMA, dim=d, mean_square=square, gain=gain)
        names, forms = [f"token {token}" for token in range(n)], ["depth_snr"] * n
        yield _compared(sampler, names, forms, precision, library, d=d, n=n, mean_square=square, what="depth")


def _compared(
    sampler: Sampler, names: list[str], forms: list[str], precision: float, library: str, **where: Any
) -> Group:
    found = simulate.run(sampler, precision=precision, seed=_seed(library, where))
    return _group(found, sampler, names, forms, **where)


def _group(found: simulate.Result, sampler: Sampler, names: list[str], forms: list[str], **where: Any) -> Group:
    """What each closed form gives in each setting, and how many standard errors the simulation lies off."""
    wanted = np.ravel(from_library(sampler.theory)[0])
    off = (np.ravel(found.mean) - wanted) / np.ravel(found.standard_error)
    rows = [
        {"form": form, "where": name, "theory": float(value), "off": round(float(distance), 3)}
        for form, name, value, distance in zip(forms, names, wanted, off, strict=True)
    ]
    return {**where, "samples": found.samples, "precision": float(f"{found.precision:.3g}"), "rows": rows}


def _weights(rows: int, sharpness: float, n: int) -> np.ndarray:
    """Of normal scores."""
    scores = sharpness * np.random.default_rng([SEED, n, rows]).standard_normal((rows, n))
    raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def _products(kept: dict[Any, Any], generator: Any, rows: Any, columns: int) -> list[Any]:
    """Weights times a block of normal numbers, three times (rows, columns): the last block is remembered."""
    key = (str(generator.bit_generator.state["state"]), columns)
    if key not in kept:
        kept.clear()
        xp, shape = array_namespace(rows), (rows.shape[-1], columns)
        kept[key] = [xp.matmul(rows, _place(generator.standard_normal(shape), rows)) for _ in range(3)]
    return kept[key]


def _place(array: np.ndarray, like: Any) -> Any:
    """Where another array is, without a copy where the library allows."""
    return array_namespace(like).asarray(array, device=device(like))


def bundle(d: int, n: int, library: str, kept: dict[Any, Any]) -> tuple[Sampler, list[str], list[str]]:
    """All quantities of all heads and sharpnesses from the same draws; energies have a denominator of 1.

    The sampler, and of each of its elements the setting and the form of ``ia_core.noise``.
    """
    rng, like = np.random.default_rng([SEED, d, n]), to_library(np.zeros(1), library)
    rows, maps, theory, names, forms = [], [], [], [], []
    # The one weight of n = 1 is 1 at every sharpness.
    for H, sharpness in itertools.product(HEADS, SHARPNESSES if n > 1 else SHARPNESSES[:1]):
        a, V = _weights(H, sharpness, n), _place(rng.standard_normal((d, H * max(1, d // H))) / d**0.5, like)
        rows.append(a)
        maps.append((H, V))
        weights, W, head = _place(a[:, None, :], like), {"value_projection": V}, f"{H} heads, sharpness {sharpness:g}"
        theory.append(noise.multi_head_noise_energy(weights, SIGMA, **W))
        names.append(head)
        forms.append("multi_head_noise_energy")
        for shift in MEANS:
            mean = _place(np.full(d, shift), like)
            x, pair = {"mean": mean} | W, {"mean_x": mean, "mean_y": -3 * mean} | W
            theory += [noise.multi_head_signal_energy(weights, **x), noise.multi_head_snr(weights, SIGMA, **x)]
            theory += [getattr(noise, f"multi_head_misalignment_{what}")(weights, **pair) for what in ("energy", "snr")]
            names += [f"{head}, mean {shift:g}"] * 4
            what = ("signal_energy", "snr", "misalignment_energy", "misalignment_snr")
            forms += [f"multi_head_{one}" for one in what]
    all_rows = _place(np.concatenate(rows), like)
    values = np.asarray([from_library(one)[0].item() for one in theory])

    def draw(generator: Any, count: int) -> tuple[Any, Any]:
        return _draw(_products(kept, generator, all_rows, count * d), d, all_rows, maps)

    return Sampler(draw, (len(names),), 3 * n * d, values), names, forms


def _draw(drawn: list[Any], d: int, rows: Any, maps: list[tuple[int, Any]]) -> tuple[Any, Any]:
    xp, over, under, at = array_namespace(rows), [], [], 0
    of_x, of_y, of_noise = (xp.reshape(z, (rows.shape[0], -1, d)) for z in drawn)
    sums = xp.sum(rows, axis=-1)[:, None, None]  # what a common mean is multiplied by
    for H, V in maps:
        some = slice(at, at + H)
        at += H
        V3 = xp.permute_dims(xp.reshape(V, (d, H, -1)), (1, 0, 2))
        x, moved, noisy = (xp.matmul(o[some, ...], V3) for o in (of_x, of_y - of_x, SIGMA * of_noise))
        mean = sums[some, ...] * xp.sum(V3, axis=1, keepdims=True)  # of a mean of 1 in every component
        noise_energy = xp.sum(noisy**2, axis=(0, 2))  # (count,)
        one = xp.ones_like(noise_energy)
        over, under = [*over, noise_energy], [*under, one]
        for shift in MEANS:
            signal = xp.sum((x + shift * mean) ** 2, axis=(0, 2))
            gamma = xp.sum((moved - 4 * shift * mean) ** 2, axis=(0, 2))
            over += [signal, signal, gamma, signal]
            under += [one, noise_energy, one, gamma]
    return xp.stack(over, axis=-1), xp.stack(under, axis=-1)


def _written(facts: dict[str, Any], mine: bool) -> int:
    """Data and table into their files, and the exit status."""
    data, tables = (ROOT / "build/noise_grid.json", ROOT / "build") if mine else (RESULTS, ROOT / "docs/generated")
    write_whole(data, json.dumps(facts, indent=1) + "\n")
    where = f"{facts['date']}, {facts['machine']['cpus']} processors ({facts['machine']['processor']}), relative "
    where += f"standard errors of at most {facts['precision']:.1%}"
    lines = _table(facts)
    text = "\n".join(["% Written by benchmarks/noise_grid.py.", "", where + lines[0], "", *lines[1:]]) + "\n"
    write_whole(tables / "noise_grid.md", text)
    print(text)
    return int(any(record["beyond"] for record in facts["libraries"].values()))


def _table(facts: dict[str, Any]) -> list[str]:
    """What was compared, in Markdown."""
    total, normal = sum(record["comparisons"] for record in facts["libraries"].values()), statistics.NormalDist()
    half, chance = normal.inv_cdf((1 + 0.5 ** (1 / max(1, total))) / 2), 1 - (1 - 2 * normal.cdf(-LIMIT)) ** total
    lines = [
        f"; {facts['seconds']:.0f} s. The farthest of {total} *independent* normal numbers lies beyond {half:.1f} in "
        f"half of all cases, and beyond {LIMIT:g} in {chance:.0%}; of dependent ones, as these are, no more often.",
        "| library | comparisons | distinct values | samples | largest error | farthest, in errors | beyond 4 |",
        "| --- " * 7 + "|",
    ]
    for library, record in facts["libraries"].items():
        some = [group for group in record["groups"] if group["comparisons"]] or [{"samples": 0, "precision": 0.0}]
        samples, worst = [group["samples"] for group in some], record["worst"] or {"off": 0.0}
        lines.append(
            f"| {library} {facts['versions'][library]} | {record['comparisons']} | {record['values']} "
            f"| {min(samples)} to {max(samples)} | {max(group['precision'] for group in some):.2%} "
            f"| {abs(worst['off']):.2f} | {len(record['beyond'])} |"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
