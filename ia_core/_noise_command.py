"""The command `ia-core noise`: the thresholds of given attention weights, as a table, JSON and a figure."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from . import noise, simulate
from ._sweep import Submit, Unit, UnitError, code_digest, sweep

__all__ = ["add_parser", "run", "simulate_unit"]

# column -> what it is
COLUMNS = {
    "n_eff": "effective tokens, 1 / sum a^2",
    "sigma*": "noise level on the values at which SNR = 1 (the paper: 1)",
    "SNR": "signal over noise at --sigma (the paper: 1 / sigma^2)",
    "gamma": "energy of the misalignment",
    "gamma paper": "2 d + ||shift||^2, or its form for several heads",
    "SNR mis": "signal over misalignment",
    "sigma eq": "noise level that does as much harm as the misalignment",
}


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """The subcommand and its options."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "noise",
        help="thresholds of noise and misalignment for given attention weights",
        description="For attention weights, the noise level at which the output is half noise, and what values of "
        "another sequence do to it. Tokens have unit variance and a common mean.",
    )
    add = parser.add_argument
    add(
        "weights",
        nargs="*",
        default=["one-hot", "softmax:2", "uniform"],
        metavar="WEIGHTS",
        help="uniform, one-hot, softmax:S (normal scores times S), or a file .npy or .json of shape (N,), (M, N) or "
        "(H, M, N); by default one-hot, softmax:2 and uniform",
    )
    add("--dim", type=int, default=64, metavar="D", help="width of a token (default: 64)")
    add("--tokens", type=int, default=64, metavar="N", help="of weights that are not from a file (default: 64)")
    add("--heads", type=int, default=1, metavar="H", help="of weights that are not from a file (default: 1)")
    add("--sigma", type=float, default=1.0, metavar="S", help="noise level for the column SNR (default: 1)")
    add("--mean", type=float, default=0.0, metavar="M", help="mean of each component of the tokens (default: 0)")
    add("--shift", type=float, default=0.0, metavar="M", help="by which the other sequence's mean differs (default: 0)")
    add("--seed", type=int, default=0, metavar="K", help="of softmax:S and of a simulation (default: 0)")
    add("--simulate", type=float, nargs="?", const=0.01, metavar="P", help="measure SNR too, to this precision (0.01)")
    add("--json", metavar="F", help="write everything as JSON")
    add("--figure", metavar="F", help="draw sigma* against n_eff, .svg, .png or .pdf (needs matplotlib)")
    return parser


def run(options: argparse.Namespace, submit: Submit | None = None) -> int:
    """Print the table; the exit status of the command. ``submit`` runs simulations elsewhere."""
    try:
        if options.heads < 1 or options.tokens < 1:
            raise ValueError("`--heads` and `--tokens` must be at least 1")
        for name in ("mean", "shift"):
            if not math.isfinite(vars(options)[name]):
                raise ValueError(f"`--{name}` must be finite; got {vars(options)[name]}")
        if options.seed < 0:
            raise ValueError(f"`--seed` must not be negative; got {options.seed}")
        if options.dim < 1 or options.dim % options.heads:
            raise ValueError(f"`--dim` must be a multiple of {options.heads} heads; got {options.dim}")
        weights = {name: _weights(name, options) for name in options.weights}
        found = _simulated(weights, options, submit) if options.simulate and options.sigma else {}
        rows = [row for name in options.weights for row in _rows_of(name, weights[name], options, found.get(name))]
        _print(rows, options)
        if options.json:
            facts = {name: value for name, value in vars(options).items() if name != "run"}
            _write(options.json, json.dumps({"options": facts, "rows": rows}, indent=1) + "\n")
        if options.figure:
            _draw(rows, options.figure)
    except UnitError as error:
        print(f"ia-core: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ia-core: interrupted; `--keep DIR` keeps what is finished", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"ia-core: {error}", file=sys.stderr)
        return 2
    return 0


def _weights(name: str, options: argparse.Namespace) -> Any:
    """Weights (H, M, N) of a name or a file."""
    H, N = options.heads, options.tokens
    kind, _, sharpness = name.partition(":")
    if name == "uniform":
        return np.full((H, 1, N), 1 / N)
    if name == "one-hot":
        return np.broadcast_to(np.eye(N)[:1], (H, 1, N))
    if kind == "softmax":
        try:
            scores = float(sharpness) * np.random.default_rng(options.seed).standard_normal((H, 1, N))
        except ValueError:
            raise ValueError(f"softmax:S needs a number S; got `{name}`") from None
        raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return raised / raised.sum(axis=-1, keepdims=True)
    path = Path(name)
    if path.suffix not in (".npy", ".json"):
        raise ValueError(f"weights must be uniform, one-hot, softmax:S or a file .npy or .json; got `{name}`")
    if not path.exists():
        raise FileNotFoundError(f"no file `{name}`")
    try:
        npy = path.suffix == ".npy"
        found = np.load(path, allow_pickle=False) if npy else np.asarray(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"`{name}` holds no array: {error}") from None
    if found.dtype.kind != "f" or not 1 <= found.ndim <= 3 or found.size == 0:
        raise ValueError(
            f"`{name}` must hold floats of shape (N,), (M, N) or (H, M, N); got {found.dtype} {found.shape}"
        )
    return found.reshape((1,) * (3 - found.ndim) + found.shape)


def _rows_of(
    name: str, weights: Any, options: argparse.Namespace, found: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """One row for each query, of all heads together."""
    d = options.dim
    mean = np.full(d, options.mean)
    keywords: dict[str, Any] = {"mean_x": mean, "mean_y": mean + options.shift}
    level = noise.multi_head_critical_sigma(weights, mean=mean)
    snr = noise.multi_head_snr(weights, options.sigma, mean=mean)
    gamma, paper = (noise.multi_head_misalignment_energy(weights, **keywords, form=f) for f in ("exact", "paper"))
    of_one = noise.multi_head_noise_energy(weights, 1.0, dim=d)
    columns = {
        # Of several heads that of the mean of their sums of squares.
        "n_eff": d / of_one,
        "sigma*": level,
        "SNR": snr,
        "gamma": gamma,
        "gamma paper": paper,
        "SNR mis": noise.multi_head_misalignment_snr(weights, **keywords),
        "sigma eq": np.sqrt(gamma / of_one),
    }
    M = weights.shape[-2]
    rows = [
        {"weights": name if M == 1 else f"{name}[{m}]", **{c: float(values[m]) for c, values in columns.items()}}
        for m in range(M)
    ]
    if found is not None:
        for row, measured, error in zip(rows, found["mean"], found["standard_error"], strict=True):
            row |= {"SNR measured": measured, "standard error": error}
        if not found["complete"]:
            print(f"ia-core: {name}: interrupted at a precision of {found['precision']:.2g}", file=sys.stderr)
    return rows


def _simulated(
    weights: dict[str, Any], options: argparse.Namespace, submit: Submit | None
) -> dict[str, dict[str, Any]]:
    """The SNR of each weights by simulation: here, in processes, or elsewhere."""
    asked = {
        name: {
            "weights": array.tolist(),
            "dtype": array.dtype.name,
            "sigma": options.sigma,
            "dim": options.dim,
            "mean": options.mean,
            "precision": options.simulate,
            "seed": options.seed,
        }
        for name, array in weights.items()
    }
    if not (options.workers or options.keep or submit):
        return {name: simulate_unit(**arguments, progress=True) for name, arguments in asked.items()}
    content = code_digest(also=np.__version__)
    units = [Unit(f"{__name__}:simulate_unit", arguments, content) for arguments in asked.values()]
    workers = 1 if options.workers is None else options.workers
    return dict(zip(asked, sweep(units, workers=workers, keep=options.keep, submit=submit), strict=True))


def simulate_unit(
    *,
    weights: Any,
    dtype: str,
    sigma: float,
    dim: int,
    mean: float,
    precision: float,
    seed: int,
    progress: bool = False,
) -> dict[str, Any]:
    """One simulation of the SNR, as plain data."""
    sampler = simulate.multi_head_snr(np.asarray(weights, dtype), sigma, mean=np.full(dim, mean))
    found = simulate.run(sampler, precision=precision, seed=seed, progress=progress)
    numbers = {"mean": found.mean.tolist(), "standard_error": found.standard_error.tolist()}
    return numbers | {"complete": found.complete, "precision": found.precision}


def _print(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    columns = [name for name in rows[0] if name != "weights"]
    wide = max(len("weights"), *(len(row["weights"]) for row in rows))
    numbers = f"mean {options.mean:g}, sigma {options.sigma:g}, shift {options.shift:g}"
    print(f"d = {options.dim}, unit variance, {numbers}\n")
    print(f"{'weights':<{wide}}" + "".join(f"  {name:>{max(9, len(name))}}" for name in columns))
    for row in rows:
        print(f"{row['weights']:<{wide}}" + "".join(f"  {row[name]:>{max(9, len(name))}.4g}" for name in columns))
    print("\n" + "\n".join(f"{name:<12} {text}" for name, text in COLUMNS.items()))


def _write(path: str, text: str) -> None:
    unfinished = Path(path + ".new")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def _draw(rows: list[dict[str, Any]], path: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        axes.plot(row["n_eff"], row["sigma*"], "o", label=row["weights"])
    axes.axhline(1, color="0.6", lw=1, label="the paper's form")
    axes.set(xlabel="effective tokens", ylabel="critical noise level", xscale="log")
    if len(rows) <= 12:
        axes.legend()
    unfinished = f"{path}.new{os.path.splitext(path)[1]}"
    figure.savefig(unfinished)
    os.replace(unfinished, path)
