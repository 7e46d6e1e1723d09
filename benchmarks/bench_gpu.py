"""What a position bias costs on a GPU, beside PyTorch's own attention; medians of calls that take turns.

    python benchmarks/bench_gpu.py [--seconds 90] [--rounds 9] [--only TEXT] [--out FILE]
    python benchmarks/bench_gpu.py --sweep [--only TEXT] [--seconds 60]
    python benchmarks/bench_gpu.py --report [--out FILE]
    python benchmarks/bench_gpu.py --once

16 heads of 64, M = N, real-valued positions, a network of 64 or 512 hidden units whose knots are half near 0 and half
all over the offsets. Contenders:

==========  ===========================================================================================
plain       scaled_dot_product_attention without a bias: the yardstick
matrix      the same with the bias as a matrix, which was computed before, where it fits
strict      ``torch-triton``
rounded     ``torch-triton-rounded``
flex        ``torch-flex-knots``, up to 2048; "flex, no bias" is compiled flex_attention alone
==========  ===========================================================================================

Gradients are those of query, key, value, the network and the positions of the queries. Four times of each contender:

============  =========================================================================================
milliseconds  CUDA events around a whole call that was queued behind other work, as in training; the ratios
eager         the clock around a whole call and the wait for it
graph         a whole call replayed as a CUDA graph
kernels       each kernel of a whole call, from PyTorch's profiler
============  =========================================================================================

What is finished is written to FILE after each comparison. ``--sweep`` times sizes of tiles instead, compiled by several
processes, and adds them to FILE. ``--once`` makes one call of *rounded*, forward and backward, for a profiler.
``--report`` writes docs/generated/performance_gpu.md from FILE.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import json
import multiprocessing
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
REPORT = ROOT / "docs/generated/performance_gpu.md"
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
    first = (("bfloat16", 8192, 64), ("float16", 8192, 64), ("bfloat16", 8192, 512))
    for dtype, n, hidden in first:
        yield from (Comparison(dtype, n, hidden, gradients) for gradients in (False, True))
    for dtype, n, hidden in itertools.product(DTYPES, (2048, 8192), (64, 512)):
        if (dtype, n, hidden) not in first:
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
        found |= _flex((q, k, v), call)
        if one.n <= 2048:
            found["flex"] = ours("torch-flex-knots")
    return found


def _matrix(arrays: list[Any], like: Any) -> Any:
    with torch.no_grad():
        f = OffsetMLP(*arrays[4:8])
        n = arrays[8].shape[0]
        filled = torch.empty((1, HEADS, n, n), dtype=like.dtype, device=like.device)
        for i in range(0, n, 64):
            filled[0, :, i : i + 64] = PositionBias(f, arrays[8][i : i + 64], arrays[9]).dense()
    return filled


def _flex(qkv: tuple[Any, Any, Any], call: Callable[..., Call]) -> dict[str, Call]:
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention)
    return {"flex, no bias": call(lambda: compiled(*qkv))}


def milliseconds(calls: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """Of every call in every round; they take turns, in an order that changes."""
    events: dict[str, list[Any]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in list(calls)[:: 1 if number % 2 else -1]:
            torch.cuda.synchronize()
            torch.cuda._sleep(10_000_000)  # some milliseconds, in which the host does what it has to do
            pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            pair[0].record()
            calls[name]()
            pair[1].record()
            events[name].append(pair)
    torch.cuda.synchronize()
    return {name: [start.elapsed_time(end) for start, end in pairs] for name, pairs in events.items()}


def eager(call: Call, rounds: int) -> list[float]:
    """Milliseconds of calls that are waited for, one by one."""
    found = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        torch.cuda.synchronize()
        found.append(1e3 * (time.perf_counter() - began))
    return found


def replayed(call: Call, rounds: int) -> list[float]:
    """Milliseconds of a call as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call(), call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()
    found = milliseconds({"graph": graph.replay}, rounds)["graph"]
    del kept
    return found


def kernels(call: Call) -> dict[str, float]:
    """Microseconds of the kernels of a call, the longest first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    found: dict[str, float] = {}
    for event in seen.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            name = event.name[:60]
            found[name] = round(found.get(name, 0.0) + event.device_time, 1)
    return dict(sorted(found.items(), key=lambda pair: -pair[1])[:14])


def more_about(call: Call, rounds: int) -> dict[str, Any]:
    """The other three times, or why there is none."""
    found: dict[str, Any] = {}
    for name, measure in (("eager", eager), ("graph", replayed), ("kernels", lambda c, _: kernels(c))):
        try:
            found[name] = measure(call, rounds)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if isinstance(found[name], list):
            found[name] = round(statistics.median(found[name]), 4)
    return found


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
    for name, call in calls.items():
        found[name] |= more_about(call, rounds)
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


# Of each kernel: the contender that calls it, its name, and queries, keys, warps, loads ahead and registers to try.
SWEEP = {
    "bounded": ("rounded", "forward_bounded", ((64, 64, 4, 2, 128), (64, 64, 4, 3, 168), (64, 64, 4, 3, 128))),
    "forward": ("strict", "forward", ((64, 128, 4, 3), (64, 64, 4, 3))),
    "queries": ("rounded", "backward_queries", ((64, 64, 4, 3), (64, 64, 4, 3, 168), (64, 64, 4, 2, 168))),
    "keys": ("rounded", "backward_keys", ((64, 64, 4, 3), (64, 64, 4, 2), (32, 64, 4, 3, 168))),
}


def with_sizes(kernel: str, sizes: tuple[int, ...], call: Call, rounds: int) -> float:
    """Median microseconds of a kernel with tiles of other sizes."""
    from ia_core.backends import _triton_call as of_calls

    before = of_calls._HALVES[kernel, False]
    of_calls._HALVES[kernel, False] = of_calls.Tiling(*sizes)
    try:
        call()
        return statistics.median(kernels(call)[SWEEP[kernel][1]] for _ in range(rounds))
    finally:
        of_calls._HALVES[kernel, False] = before


def _swept(kernel: str, n: int) -> Call:
    return contenders(Comparison("bfloat16", n, 64, kernel not in ("bounded", "forward")))[SWEEP[kernel][0]]


def _compile(kernel: str, sizes: tuple[int, ...]) -> None:
    with contextlib.suppress(Exception):  # said where it is timed
        with_sizes(kernel, sizes, _swept(kernel, 512), 1)


def sweep(only: str, rounds: int, until: float, out: Path) -> int:
    """Microseconds of the benchmark's kernels with tiles of other sizes, added to the record."""
    wanted = [(kernel, sizes) for kernel in SWEEP for sizes in SWEEP[kernel][2] if only in kernel]
    with multiprocessing.get_context("spawn").Pool(8) as pool:
        pool.starmap(_compile, wanted, 1)
    print(f"compiled, {until - time.monotonic():.0f} s left", flush=True)
    found: dict[str, dict[str, float]] = {}
    for kernel, group in itertools.groupby(wanted, key=lambda one: one[0]):
        call = _swept(kernel, 8192)
        for _, sizes in group:
            if time.monotonic() < until:
                try:
                    took = with_sizes(kernel, sizes, call, rounds)
                    found.setdefault(kernel, {})[", ".join(map(str, sizes))] = took
                    print(f"{kernel} {sizes}: {took:.1f} microseconds", flush=True)
                except Exception as error:
                    print(f"{kernel} {sizes}: {type(error).__name__}: {' '.join(str(error).split())[:200]}", flush=True)
    record = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    record["sizes_of_tiles"] = record.get("sizes_of_tiles", {}) | found
    write_whole(out, json.dumps(record, indent=1) + "\n")
    return 0


def report(record: dict[str, Any]) -> int:
    """The tables of docs/performance.md."""
    lines = ["% Written by benchmarks/bench_gpu.py.", ""]
    lines += [", ".join(f"{name} {what}" for name, what in record["environment"].items()) + ".", ""]
    rates = ", ".join(f"{name} {rate}" for name, rate in record["matrix_product_teraflops"].items())
    lines += [f"A large product of matrices: {rates} Tflop/s. 16 heads of 64.", ""]
    head = ["M = N", "dtype", "hidden", "what", "ms", "ratio (quartiles)", "eager ms", "graph ms", "Tflop/s", "MiB"]
    lines += [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    kernels = []
    for name, one in record["comparisons"].items():
        what = "forward + backward" if one["gradients"] else "forward"
        for who, each in one["contenders"].items():
            first = [str(one["n"]), one["dtype"], str(one["hidden"]), f"{who}, {what}"]
            if "milliseconds" not in each:
                lines.append(f"| {' | '.join([*first, each['left_out'][:80]])} |" + " |" * 5)
                continue
            ratio, (low, high) = each["ratio"]["median"], each["ratio"]["quartiles"]
            cells = [f"{statistics.median(each['milliseconds']):.3f}", f"{ratio:.2f} ({low:.2f} to {high:.2f})"]
            rest = [str(each[key]) for key in ("eager", "graph", "teraflops", "peak_mib")]
            lines.append(f"| {' | '.join([*first, *cells, *rest])} |")
            if who in ("strict", "rounded"):
                own = ("forward", "forward_bounded", "backward_queries", "backward_keys", "order_tiles")
                took = each["kernels"]
                times = ", ".join(f"`{kernel}` {took[kernel]}" for kernel in own if kernel in took)
                kernels.append(f"- {name}, {who}: {times}")
    lines += ["", "Microseconds in the largest of our kernels:", "", *kernels]
    if swept := record.get("sizes_of_tiles"):
        lines += [
            "",
            "Microseconds of the kernels by sizes of tiles (queries, keys, warps, loads ahead, registers):",
            "",
        ]
        for kernel, (who, _, _) in SWEEP.items():
            times = "; ".join(f"{sizes}: {took:.0f}" for sizes, took in swept.get(kernel, {}).items())
            lines.append(f"- {kernel} of {who}: {times}")
    write_whole(REPORT, "\n".join([*lines, ""]))
    return 0


def shown(each: dict[str, Any]) -> str:
    """A contender in one line."""
    if "milliseconds" not in each:
        return str(each)
    rest = {key: value for key, value in each.items() if key != "milliseconds"}
    return f"{statistics.median(each['milliseconds']):.3f} ms {rest}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="comparisons whose name has this in it")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.rounds < 7:
        parser.error("fewer than 7 rounds say nothing about the spread")
    if options.report:
        return report(json.loads(options.out.read_text(encoding="utf-8")))
    if options.once:
        contenders(Comparison("bfloat16", 8192, 64, True))["rounded"]()
        torch.cuda.synchronize()
        return 0
    until = time.monotonic() + options.seconds
    if options.sweep:
        return sweep(options.only, options.rounds, until, options.out)
    facts = environment(["torch", "triton"]) | {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
    facts["date"] = datetime.date.today().isoformat()
    record: dict[str, Any] = {"environment": facts, "matrix_product_teraflops": products(), "comparisons": {}}
    if options.out.exists():  # of a sweep before
        record |= {"sizes_of_tiles": json.loads(options.out.read_text(encoding="utf-8")).get("sizes_of_tiles", {})}
    print(facts, record["matrix_product_teraflops"], flush=True)
    try:
        for one in comparisons():
            if options.only in one.name and time.monotonic() < until:
                found = compare(one, options.rounds)
                record["comparisons"][one.name] = {**one._asdict(), "contenders": found}
                print(f"{one.name}:", flush=True)
                for who, each in found.items():
                    print(f"  {who}: {shown(each)}", flush=True)
                torch.cuda.empty_cache()
                write_whole(options.out, json.dumps(record, indent=1) + "\n")
    except KeyboardInterrupt:
        print("stopped; what is finished is kept", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
