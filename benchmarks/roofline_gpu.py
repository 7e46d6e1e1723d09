"""What limits the kernels for GPUs: the instructions of their loops, counted, for compute capability 9.0.

    python benchmarks/roofline_gpu.py [--hidden 64] [--label TEXT]
    python benchmarks/roofline_gpu.py --sweep forward|queries|keys
    python benchmarks/roofline_gpu.py --report

It needs Triton with its disassembler, and no GPU. The kernels are compiled for the call that bench_gpu.py times: 8192
queries and keys, 16 heads of 64, bfloat16. A loop of a kernel takes one kind of tiles (backends/_triton_tile.py); how
many tiles are of a kind, and how many edges those have, is counted from the benchmark's positions and knots. From both
come the fewest clocks that a multiprocessor needs, if nothing ever waits:

=======  ==================================================================================================
issue    each of four schedulers issues one instruction of a warp in a clock
fma      additions, products and multiply-adds of float32, 128 in a clock; those of whole numbers too
alu      comparisons, selections, minima, other whole numbers and conversions, 64 in a clock
mufu     exponentials, 16 in a clock
tensor   4096 operations of products of halves in a clock
=======  ==================================================================================================

(NVIDIA, CUDA C++ Programming Guide, throughput of native arithmetic instructions; the last is the H100's rate of dense
bfloat16 over its multiprocessors and clock.) The sum of what is largest for each kind of tiles, at the highest clock of
an H200, is a time that no schedule of this code can beat. ``products`` in the table is ``tensor`` at the rate that one
large product of matrices reached on the machine of docs/results/attention_gpu.json.

``--label`` adds the rows to docs/results/roofline_gpu.json under that name, in place of what has it. ``--report``
writes docs/generated/roofline_gpu.md from that file, with the times of docs/results/attention_gpu.json for the same
sizes of tiles beside the label ``as measured``: the kernels of commit 0ea8264, which were measured. ``--sweep``
compares sizes of tiles.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import _sass
import numpy as np
import offline_gpu
import torch
import triton
from _sass import Loop
from attention_calls import Setting

from ia_core import OffsetMLP, PositionBias
from ia_core.backends import _triton_call, _triton_tile, indirect_attention, use_backend
from ia_core.conformance._files import write_whole

ROOT = Path(__file__).resolve().parents[1]
RESULTS, TABLE = ROOT / "docs/results/roofline_gpu.json", ROOT / "docs/generated/roofline_gpu.md"
MEASURED = ROOT / "docs/results/attention_gpu.json"
AS_MEASURED = "as measured"
MEASURED_AS = {
    ("rounded", "forward"): "bounded",
    ("strict", "forward"): "forward",
    ("rounded", "queries"): "queries",
    ("rounded", "keys"): "keys",
}
TOKENS, HEADS, WIDTH = 8192, 16, 64
MULTIPROCESSORS, CLOCK, SCHEDULERS = 132, 1.98e9, 4
PRODUCTS = 4096  # operations in a clock
REGISTERS, SHARED = 65536, 227 * 1024  # of a multiprocessor
PIPES = ("issue", "fma", "alu", "mufu", "tensor")
KERNELS = {"forward": "forward", "queries": "backward_queries", "keys": "backward_keys"}
FLOATS = {"FADD", "FMUL", "FFMA", "IMAD"}
WHOLE = {"F2F", "IADD3", "LEA", "LOP3", "SHF", "ISETP", "SEL", "FSETP", "FSEL", "FMNMX", "F2FP", "PRMT", "PLOP3"}
WHOLE |= {"VIADD", "VIMNMX", "VIADDMNMX", "SGXT"}


class Tiles(NamedTuple):
    """The tiles of a kind: their part of all, the part of them that has edges, and how many edges they have."""

    share: float
    some: float
    edges: float


NONE = Tiles(0.0, 0.0, 0.0)


def loops_of(built: Any) -> list[Loop]:
    """The loops of a compiled kernel that multiply matrices, in the order of the code."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    with tempfile.TemporaryDirectory() as work:
        binary = Path(work) / "kernel.cubin"
        binary.write_bytes(built.asm["cubin"])
        text = subprocess.run([str(tool), "-c", str(binary)], capture_output=True, text=True, check=True).stdout
    return _sass.loops(text, "HGMMA")


def tiles_of(hidden: int, rows: int, columns: int) -> list[Tiles]:
    """The benchmark's tiles, kind by kind; a knot has one edge."""
    arrays = Setting(TOKENS, HEADS, WIDTH, hidden, "real", True).arrays()
    knots = np.sort(-arrays[5] / arrays[4])
    queries, values = arrays[8].reshape(-1, rows), arrays[9].reshape(-1, columns)
    least = values.min(1)[None, :] - queries.max(1)[:, None]
    most = values.max(1)[None, :] - queries.min(1)[:, None]
    far = np.where(least > 0, 2 * least >= most, 2 * most <= least)
    edges = np.searchsorted(knots, most) - np.searchsorted(knots, least)
    kind = np.where((edges > 0) | ~far, _triton_tile.EDGES.value, _triton_tile.FOLDED.value)
    found = []
    for one in range(_triton_tile.KINDS.value):
        own = edges[kind == one]
        found.append(Tiles(own.size / edges.size, float((own > 0).mean()), float(own.mean())) if own.size else NONE)
    return found


def clocks(loop: Loop, tiles: Tiles, warps: int) -> dict[str, float]:
    """Fewest clocks of a multiprocessor for one tile, pipe by pipe."""
    total: Counter[str] = Counter(loop.always)
    for part in loop.skipped:  # what only tiles with edges do
        for name, count in part.items():
            total[name] += count * tiles.some
    for part in loop.within:  # for each edge
        for name, count in part.items():
            total[name] += count * tiles.edges
    each = warps / SCHEDULERS  # warps of a scheduler
    shapes = [(re.match(r"HGMMA\.64x(\d+)x16", name), count) for name, count in total.items()]
    return {
        "issue": sum(total.values()) * each,
        "fma": sum(count for name, count in total.items() if name in FLOATS) * each,
        "alu": 2 * sum(count for name, count in total.items() if name in WHOLE) * each,
        "mufu": 8 * total["MUFU"] * each,
        # All four warps of a group issue a product, which is one product.
        "tensor": sum(2 * 64 * 16 * int(shape[1]) * count / PRODUCTS for shape, count in shapes if shape) * warps / 4,
    }


def bounds(kernel: str, built: Any, hidden: int | None) -> dict[str, Any]:
    """For one kernel: clocks for each kind of tiles, the least time by each pipe and by the largest of each kind."""
    own = "bounded" if built.name.endswith("bounded") else kernel
    tile = _triton_call.tiling(own, True, WIDTH, False, offline_gpu.SHARED[90])
    kinds = tiles_of(hidden, tile.rows, tile.columns) if hidden else [Tiles(1.0, 0.0, 0.0)]
    loops = loops_of(built)
    if hidden and len(loops) == len(kinds) - 1 and not kinds[-1].share:  # no loop for offsets that are not finite
        kinds = kinds[:-1]
    if len(loops) != len(kinds):
        raise RuntimeError(f"{kernel} has {len(loops)} loops with products of matrices; {len(kinds)} are expected")
    of_kinds = [clocks(loop, tiles, tile.warps) for loop, tiles in zip(loops, kinds, strict=True)]
    count = TOKENS**2 * HEADS / (tile.rows * tile.columns) / MULTIPROCESSORS / CLOCK * 1e3
    registers = int(re.findall(r"(\d+)", offline_gpu.facts(built))[0])
    blocks = min(REGISTERS // (registers * 32 * tile.warps), SHARED // (built.metadata.shared + 1024))
    return {
        "tile": list(tile),
        "registers": registers,
        "shared": built.metadata.shared,
        "warps": blocks * tile.warps,
        "kinds": [
            {"share": tiles.share, "edges": tiles.edges, "clocks": one}
            for tiles, one in zip(kinds, of_kinds, strict=True)
            if tiles.share
        ],
        "ms": {
            pipe: count * sum(tiles.share * one[pipe] for tiles, one in zip(kinds, of_kinds, strict=True))
            for pipe in PIPES
        },
        "least": count
        * sum(tiles.share * max(one.values()) for tiles, one in zip(kinds, of_kinds, strict=True) if tiles.share),
    }


def compiled(path: str, hidden: int | None, *, gradients: bool = True) -> dict[str, Any]:
    """The kernels of the benchmark's call, by name."""
    found: dict[str, Any] = {}
    seen = offline_gpu.record(lambda name, built, _: found.update({name: built}))
    arrays = [torch.from_numpy(a) for a in Setting(TOKENS, HEADS, WIDTH, hidden or 1, "real", True).arrays()]
    q, k, v, cotangent = (array.to(torch.bfloat16) for array in arrays[:4])
    leaves = arrays[4:9]
    for leaf in (q, k, v, *leaves):
        leaf.requires_grad_(gradients)
    bias = PositionBias(OffsetMLP(*leaves[:4]), leaves[4], arrays[9]) if hidden else None
    with use_backend(path):
        output = indirect_attention(q, k, v, bias=bias)
    if gradients:
        torch.autograd.grad(output, (q, k, v, *(leaves if hidden else ())), cotangent)
    seen.clear()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--label", help="keep the rows under this name")
    parser.add_argument("--sweep", choices=tuple(KERNELS))
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    if options.report:
        write_whole(TABLE, "\n".join(report(json.loads(RESULTS.read_text(encoding="utf-8")))) + "\n")
        return 0
    if options.sweep:
        return sweep(options.sweep, options.hidden)
    rows = []
    for name, path, hidden in (
        ("no bias", "torch-triton-rounded", None),
        ("rounded", "torch-triton-rounded", options.hidden),
        ("strict", "torch-triton", options.hidden),
    ):
        built = compiled(path, hidden)
        for kernel, function in KERNELS.items():
            own = built.get(f"{function}_bounded", built[function])
            rows.append({"what": name, "kernel": kernel} | bounds(kernel, own, hidden))
            print(line(rows[-1]), flush=True)
    if options.label:
        record = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        about = {"triton": triton.__version__, "hidden": options.hidden}
        record[options.label] = about | {"rows": rows}
        write_whole(RESULTS, json.dumps(record, indent=1) + "\n")
    return 0


def sweep(kernel: str, hidden: int) -> int:
    """The same for other sizes of tiles."""
    for rows, columns, warps, stages in itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3)):
        if warps == 8 and rows == 64:
            continue
        tile = _triton_call.Tiling(rows, columns, warps, stages)
        _triton_call._HALVES["bounded" if kernel == "forward" else kernel, False] = tile
        try:
            built = compiled("torch-triton-rounded", hidden, gradients=kernel != "forward")
            own = built.get(f"{KERNELS[kernel]}_bounded", built[KERNELS[kernel]])
            row = {"what": "rounded", "kernel": kernel} | bounds(kernel, own, hidden)
            print(line(row), flush=True)
        except Exception as error:
            print(rows, columns, warps, stages, type(error).__name__, str(error)[:100], flush=True)
    return 0


def line(row: dict[str, Any]) -> str:
    kinds = "; ".join(
        f"{one['share']:.2f} x {one['edges']:.1f} edges {one['clocks']['issue']:.0f}" for one in row["kinds"]
    )
    times = ", ".join(f"{pipe} {row['ms'][pipe]:.3f}" for pipe in PIPES)
    return (
        f"{row['what']} {row['kernel']} {row['tile']}: {row['registers']} registers, {row['warps']} warps; "
        f"least {row['least']:.3f} ms ({times}); issue by kind: {kinds}"
    )


def report(record: dict[str, Any]) -> list[str]:
    """The table, in Markdown."""
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    swept = measured.get("sizes_of_tiles", {})
    slower = PRODUCTS * MULTIPROCESSORS * CLOCK / 1e12 / measured["matrix_product_teraflops"]["bfloat16"]
    lines = [
        "% Written by benchmarks/roofline_gpu.py from docs/results/roofline_gpu.json.",
        "",
        "Milliseconds; 8192 queries and keys, 16 heads of 64, bfloat16.",
        "",
        f"| kernels | path | kernel | hidden | {' | '.join(PIPES)} | products | least | measured | least / measured |",
        "| --- " * 13 + "|",
    ]
    for label, one in record.items():
        for row in one["rows"]:
            key = MEASURED_AS.get((row["what"], row["kernel"]), "") if label == AS_MEASURED else ""
            sizes = ", ".join(str(size) for size in row["tile"] if size is not None)
            took = swept.get(key, {}).get(sizes, 0.0) / 1e3
            cells = [
                label,
                row["what"],
                row["kernel"],
                "" if row["what"] == "no bias" else one["hidden"],
                *(f"{row['ms'][pipe]:.2f}" for pipe in PIPES),
                f"{row['ms']['tensor'] * slower:.2f}",
                f"{row['least']:.2f}",
                f"{took:.2f}" if took else "",
                f"{row['least'] / took:.0%}" if took else "",
            ]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    versions = ", ".join(sorted({one["triton"] for one in record.values()}))
    return [*lines, "", f"Compiled by Triton {versions}."]


if __name__ == "__main__":
    sys.exit(main())
