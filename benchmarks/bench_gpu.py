"""What a position bias costs on a GPU, beside PyTorch's own attention; medians of calls that take turns.

    python benchmarks/bench_gpu.py [--seconds 90] [--rounds 7] [--only TEXT] [--sweep] [--out FILE]

16 heads of 64, M = N, real-valued positions, a network of 64 or 512 hidden units whose knots are half near 0 and half
all over the offsets. Contenders:

==========  ===========================================================================================
plain       scaled_dot_product_attention without a bias: the yardstick
matrix      the same with the bias as a matrix, which was computed before, where it fits
strict      ``torch-triton``
rounded     ``torch-triton-rounded``
flex        compiled flex_attention without a bias, and with one interpolated in a table over whole offsets
==========  ===========================================================================================

Gradients are those of query, key, value, the network and the positions of the queries. Times are CUDA events around one
call. What is finished is written to FILE when ``--seconds`` are over, or on Ctrl-C. ``--sweep`` times sizes of tiles
instead, and writes nothing.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _machine import environment
from attention_calls import Setting
from torch.nn.functional import scaled_dot_product_attention as attention

from ia_core import OffsetMLP, PositionBias
from ia_core.backends import indirect_attention, use_backend
from ia_core.conformance._files import write_whole

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs/results/attention_gpu.json"
HEADS, WIDTH = 16, 64
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
Call = Callable[[], Any]


class Comparison(NamedTuple):
    """Contenders in turn on the same arrays."""

    dtype: str
    n: int
    hidden: int
    gradients: bool

    @property
    def name(self) -> str:
        what = "forward + backward" if self.gradients else "forward"
        return f"{self.dtype}, {self.n}, {self.hidden} hidden, {what}"


def comparisons() -> Iterator[Comparison]:
    """What the issue asks for first."""
    for dtype, n, hidden in (("bfloat16", 8192, 64), ("bfloat16", 8192, 512)):
        yield from (Comparison(dtype, n, hidden, gradients) for gradients in (False, True))
    for dtype, n, hidden in itertools.product(DTYPES, (2048, 8192), (64, 512)):
        if (dtype, n) != ("bfloat16", 8192):
            yield from (Comparison(dtype, n, hidden, gradients) for gradients in (False, True))


def contenders(one: Comparison) -> dict[str, Call]:
    """Callables; each makes its result anew."""
    setting = Setting(one.n, HEADS, WIDTH, one.hidden, "real", one.gradients)
    arrays = [torch.from_numpy(array).cuda() for array in setting.arrays()]
    q, k, v, cotangent = (array.to(DTYPES[one.dtype]) for array in arrays[:4])
    leaves = arrays[4:9]
    for leaf in (q, k, v, *leaves):
        leaf.requires_grad_(one.gradients)

    def call(function: Call, *others: Any) -> Call:
        def run() -> Any:
            output = function()
            return torch.autograd.grad(output, (q, k, v, *others), cotangent) if one.gradients else output

        return run

    def ours(path: str) -> Call:
        def function() -> Any:
            with use_backend(path):
                return indirect_attention(q, k, v, bias=PositionBias(OffsetMLP(*leaves[:4]), *leaves[4:], arrays[9]))

        return call(function, *leaves)

    found = {"plain": call(lambda: attention(q, k, v)), "strict": ours("torch-triton")}
    if one.dtype != "float32":
        found["rounded"] = ours("torch-triton-rounded")
    if one.n <= 2048 or (one.dtype != "float32" and not one.gradients):
        matrix = torch.from_numpy(setting.matrix()).cuda().to(q.dtype)[None] if one.n <= 2048 else _matrix(arrays, q)
        matrix.requires_grad_(one.gradients)
        found["matrix"] = call(lambda: attention(q, k, v, attn_mask=matrix), matrix)
    if one.hidden == 64:
        found |= _flex(arrays, (q, k, v), call)
    return found


def _matrix(arrays: list[Any], like: Any) -> Any:
    with torch.no_grad():
        f = OffsetMLP(*arrays[4:8])
        n = arrays[8].shape[0]
        filled = torch.empty((1, HEADS, n, n), dtype=like.dtype, device=like.device)
        for i in range(0, n, 64):
            filled[0, :, i : i + 64] = PositionBias(f, arrays[8][i : i + 64], arrays[9]).dense()
    return filled


def _flex(arrays: list[Any], qkv: tuple[Any, Any, Any], call: Callable[..., Call]) -> dict[str, Call]:
    from torch.nn.attention.flex_attention import flex_attention

    n = arrays[8].shape[0]
    with torch.no_grad():
        whole = torch.arange(2 * n + 64, device="cuda", dtype=torch.float32)
        table = PositionBias(OffsetMLP(*arrays[4:8]), whole.new_full((1,), n + 32.0), whole).dense()[:, 0].contiguous()
    queries = arrays[8].detach()
    compiled = torch.compile(flex_attention)

    def score(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        t = j - queries[i] + n + 32.0
        below = torch.clamp(t.floor(), 0, 2 * n + 62).to(torch.int32)
        left = table[h, below]
        return s + left + (t - below) * (table[h, below + 1] - left)

    return {
        "flex, no bias": call(lambda: compiled(*qkv)),
        "flex, table": call(lambda: compiled(*qkv, score_mod=score)),
    }


def milliseconds(calls: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """Of every call in every round; they take turns, in an order that changes."""
    events: dict[str, list[Any]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in list(calls)[:: 1 if number % 2 else -1]:
            torch.cuda.synchronize()
            torch.cuda._sleep(1_000_000)  # what the host has to do is done while the device waits
            pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            pair[0].record()
            calls[name]()
            pair[1].record()
            events[name].append(pair)
    torch.cuda.synchronize()
    return {name: [start.elapsed_time(end) for start, end in pairs] for name, pairs in events.items()}


def compare(one: Comparison, rounds: int) -> dict[str, Any]:
    calls, found = {}, {}
    for name, call in contenders(one).items():
        try:
            call()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            kept = call()
            torch.cuda.synchronize()
            found[name] = {"peak_mib": round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)}
            del kept
            calls[name] = call
        except Exception as error:  # a contender that cannot
            found[name] = {"left_out": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    times = milliseconds(calls, rounds)
    operations = 4 * one.n**2 * HEADS * WIDTH * (3.5 if one.gradients else 1)
    for name, each in times.items():
        middle = statistics.median(each)
        found[name] |= {"milliseconds": [round(t, 4) for t in each], "teraflops": round(operations / middle / 1e9, 1)}
        if "plain" in times:
            ratios = [mine / plain for mine, plain in zip(each, times["plain"], strict=True)]
            low, _, high = statistics.quantiles(ratios, n=4)
            ratio = middle / statistics.median(times["plain"])
            found[name]["ratio"] = {"median": round(ratio, 3), "quartiles": [round(low, 3), round(high, 3)]}
    return found


def products() -> dict[str, float]:
    """Teraflops of a large matrix product, by dtype."""
    found = {}
    for name, dtype in DTYPES.items():
        n = 8192 if name != "float32" else 4096
        a, b = torch.randn(2, n, n, device="cuda").to(dtype)
        calls = {"product": lambda a=a, b=b: a @ b}
        milliseconds(calls, 3)
        found[name] = round(2 * n**3 / statistics.median(milliseconds(calls, 7)["product"]) / 1e9, 1)
    return found


def sweep(only: str, rounds: int, until: float) -> int:
    """Times of the benchmark's call with tiles of other sizes."""
    from ia_core.backends import _triton_launch as launch

    sizes = {"forward": ((128, 64), (128, 128), (64, 64)), "queries": ((128, 64), (64, 64), (64, 128))}
    sizes["keys"] = ((64, 128), (64, 64), (128, 64))
    for kernel, path in itertools.product(sizes, ("torch-triton-rounded", "torch-triton")):
        before = launch._HALVES[kernel, False]
        for (rows, columns), warps, stages in itertools.product(sizes[kernel], (4, 8), (2, 3)):
            text = f"{path} {kernel} {rows} x {columns}, {warps} warps, {stages} stages"
            if only not in text or time.monotonic() > until:
                continue
            launch._HALVES[kernel, False] = launch.Tiling(rows, columns, warps, stages)
            name = "strict" if path == "torch-triton" else "rounded"
            try:
                calls = contenders(Comparison("bfloat16", 8192, 64, kernel != "forward"))
                calls = {key: calls[key] for key in ("plain", name)}
                milliseconds(calls, 2)
                times = milliseconds(calls, rounds)
                middle = {key: statistics.median(each) for key, each in times.items()}
                print(f"{text}: {middle[name]:.3f} ms, {middle[name] / middle['plain']:.3f} of plain", flush=True)
            except Exception as error:
                print(f"{text}: {type(error).__name__}: {' '.join(str(error).split())[:200]}", flush=True)
        launch._HALVES[kernel, False] = before
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="comparisons whose name has this in it")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.rounds < 7:
        parser.error("fewer than 7 rounds say nothing about the spread")
    until = time.monotonic() + options.seconds
    if options.sweep:
        return sweep(options.only, options.rounds, until)
    facts = environment(["torch", "triton"]) | {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
    facts["date"] = datetime.date.today().isoformat()
    record: dict[str, Any] = {"environment": facts, "matrix_product_teraflops": products(), "comparisons": {}}
    print(facts, record["matrix_product_teraflops"], flush=True)
    try:
        for one in comparisons():
            if options.only in one.name and time.monotonic() < until:
                found = compare(one, options.rounds)
                record["comparisons"][one.name] = {**one._asdict(), "contenders": found}
                shown = {who: each.get("ratio", each).get("median", each) for who, each in found.items()}
                print(f"{one.name}: plain {statistics.median(found['plain']['milliseconds']):.3f} ms, {shown}", flush=True)
                torch.cuda.empty_cache()
    except KeyboardInterrupt:
        print("stopped; what is finished is kept", file=sys.stderr)
    write_whole(options.out, json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
