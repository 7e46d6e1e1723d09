"""How far from the truth: our path on the CPU beside PyTorch's attention, on the same numbers, not against a bound.

    python benchmarks/errors.py run [--seeds 4] [--out FILE]
    python benchmarks/errors.py report [--out FILE]

The truth is the reference in float64, on the numbers as the dtype holds them. An error is |result - truth| in steps of
the dtype at 1, for the output and the gradients of query, key and value by a normal cotangent. ``run`` counts them by
powers of 2 and takes quantiles; ``report`` writes docs/generated/errors.md and a figure.

==============  =================================================================================
ours            ``ia_core.backends.indirect_attention``, the bias a function
uncompiled      the same where there is no C compiler
matrix          ``scaled_dot_product_attention``, the bias a matrix, right in float64 and then rounded
composition     the same, the matrix from the network by plain operations in float32
ours, no bias   both without a bias
plain
==============  =================================================================================
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _machine import environment
from attention_calls import uncompiled
from torch.nn.functional import scaled_dot_product_attention

import ia_core
from ia_core import OffsetMLP, PositionBias
from ia_core.backends import indirect_attention
from ia_core.conformance._files import write_whole

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs/results/errors.json"
TABLE, FIGURE = ROOT / "docs/generated/errors.md", ROOT / "docs/_static/errors.svg"
DTYPES = ("float32", "float16", "bfloat16")
TOKENS, HEADS, WIDTH, HIDDEN = 512, 8, 64, 64
NAMES = ("ours", "uncompiled", "matrix", "composition", "ours, no bias", "plain")
PARTS = ("output", "gradients")
QUANTILES = (0.5, 0.99, 1.0)
Record = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    what = parser.add_subparsers(dest="what", required=True)
    run = what.add_parser("run")
    run.add_argument("--seeds", type=int, default=4)
    for sub in (run, what.add_parser("report")):
        sub.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.what == "report":
        return report(json.loads(options.out.read_text(encoding="utf-8")))
    record: Record = {"date": datetime.date.today().isoformat(), "environment": environment(["torch"]), "found": {}}
    for dtype in DTYPES:
        errors = [errors_of(getattr(torch, dtype), seed) for seed in range(options.seeds)]
        for key in errors[0]:
            record["found"][f"{dtype}, {key}"] = counted(torch.cat([one[key] for one in errors]))
    write_whole(options.out, json.dumps(record, indent=1) + "\n")
    return 0


def errors_of(dtype: torch.dtype, seed: int) -> dict[str, torch.Tensor]:
    """Errors in steps of the dtype, by who and what."""
    random = torch.Generator().manual_seed(seed)
    arrays = [torch.randn(1, HEADS, TOKENS, WIDTH, generator=random).to(dtype).requires_grad_() for _ in range(3)]
    cotangent = torch.randn(1, HEADS, TOKENS, WIDTH, generator=random).to(dtype)
    w1 = torch.randn(HIDDEN, generator=random)
    real = torch.arange(float(TOKENS)) + torch.rand(TOKENS, generator=random)
    knots = TOKENS * (2 * torch.rand(HIDDEN, generator=random) - 1)
    w2 = torch.randn(HIDDEN, HEADS, generator=random) / (HIDDEN * TOKENS) ** 0.5
    parts, places = [w1, -w1 * knots, w2, torch.zeros(HEADS)], [real, torch.arange(float(TOKENS))]
    bias = PositionBias(OffsetMLP(*parts), *places)
    exact = PositionBias(OffsetMLP(*(part.double() for part in parts)), *(at.double() for at in places))
    matrix, composed = (one.dense()[None].to(dtype) for one in (exact, bias))
    calls: dict[str, Callable[[], torch.Tensor]] = {
        "ours": lambda: indirect_attention(*arrays, bias=bias),
        "uncompiled": uncompiled(lambda: indirect_attention(*arrays, bias=bias)),
        "matrix": lambda: scaled_dot_product_attention(*arrays, attn_mask=matrix),
        "composition": lambda: scaled_dot_product_attention(*arrays, attn_mask=composed),
        "ours, no bias": lambda: indirect_attention(*arrays),
        "plain": lambda: scaled_dot_product_attention(*arrays),
    }
    doubles = [array.detach().double().requires_grad_() for array in arrays]
    truths = {
        name: differentiated(lambda given=given: ia_core.indirect_attention(*doubles, bias=given), doubles, cotangent)
        for name, given in (("bias", exact), ("none", None))
    }
    found = {}
    for name, call in calls.items():
        results = differentiated(call, arrays, cotangent)
        truth = truths["none" if name in ("plain", "ours, no bias") else "bias"]
        for part, got, want in zip(PARTS, results, truth, strict=True):
            found[f"{name}, {part}"] = (got.double() - want).abs() / torch.finfo(dtype).eps
    return found


def differentiated(call: Callable[[], torch.Tensor], arrays: list[Any], cotangent: Any) -> list[torch.Tensor]:
    """The output, flat, and the gradients in one row."""
    output = call()
    gradients = torch.autograd.grad(output, arrays, cotangent.to(output.dtype))
    return [output.detach().reshape(-1), torch.cat([gradient.reshape(-1) for gradient in gradients])]


def counted(errors: torch.Tensor) -> Record:
    ordered = torch.sort(errors).values
    at = [min(len(ordered) - 1, int(q * len(ordered))) for q in QUANTILES]
    powers = torch.ceil(torch.log2(errors.clamp(min=2.0**-20))).int().tolist()
    counts = {str(power): number for power, number in sorted(Counter(powers).items())}
    return {"quantiles": [float(f"{ordered[k]:.3g}") for k in at], "counts": counts}


def report(record: Record) -> int:
    about = ", ".join(f"{name} {what}" for name, what in record["environment"].items())
    sizes = f"{TOKENS} queries and keys, {HEADS} heads of {WIDTH}, {HIDDEN} hidden units"
    lines = ["% Written by benchmarks/errors.py.", "", f"{record['date']}, {about}; {sizes}.", ""]
    lines += [f"| dtype | what | {' | '.join(NAMES)} |", "| --- " * (2 + len(NAMES)) + "|"]
    for dtype in DTYPES:
        for part in PARTS:
            found = [record["found"][f"{dtype}, {name}, {part}"]["quantiles"] for name in NAMES]
            cells = [", ".join(f"{error:.2g}" for error in one) for one in found]
            lines.append(f"| {dtype} | {part} | {' | '.join(cells)} |")
    lines += ["", "Steps of the dtype at 1: median, 99 %, largest. Gradients are those of query, key and value."]
    write_whole(TABLE, "\n".join(lines) + "\n")
    print("\n".join(lines))
    draw(record)
    return 0


def draw(record: Record) -> None:
    """For each dtype and part the share of errors by powers of 2."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = "errors"
    figure, axes = plt.subplots(2, len(DTYPES), figsize=(4 * len(DTYPES), 6), sharey=True, squeeze=False)
    for column, dtype in enumerate(DTYPES):
        for row, part in enumerate(PARTS):
            for number, name in enumerate(NAMES):
                counts = record["found"][f"{dtype}, {name}, {part}"]["counts"]
                powers, total = sorted(map(int, counts)), sum(counts.values())
                shares = [counts[str(power)] / total for power in powers]
                dashes = "-" if name.startswith(("ours", "uncompiled")) else "--"
                axes[row][column].plot(powers, shares, dashes, marker=".", color=f"C{number}", label=name)
            axes[row][column].set(title=f"{dtype}, {part}", xlabel="error at most 2^x steps of the dtype at 1")
            axes[row][column].grid(visible=True, alpha=0.2)
    for row in axes:
        row[0].set_ylabel("share")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(FIGURE, metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(main())
