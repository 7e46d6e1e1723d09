"""What a position bias costs: ours, written out, given as a matrix, and attention without any, side by side.

    python benchmarks/bench_attention.py run [--preset contract grid] [--libraries torch jax numpy] [--only TEXT]
        [--rounds 7] [--most 20] [--out FILE]
    python benchmarks/bench_attention.py report [--out FILE]

``contract``: 8 heads of 64 at M = N = 4096 (2048 for NumPy), with one thread and with two, and the memory of a call at
32768. ``grid``: M = N from 128 to 8192, two shapes of heads, 16 to 512 hidden units, real and whole positions.

A comparison is a process of its own with all contenders in it: after two calls to warm up they take turns, in an order
that changes, at least 7 rounds. The record has ratios of medians, to attention without a bias, and the quartiles
of the ratios within a round. A contender whose second call takes more than ``--most`` seconds, or that fails, is left
out, and the record says so. Memory is that of one more process for each contender. What is found is written after each
comparison; one that FILE has from the same machine and versions is not made again. ``report`` writes
docs/generated/performance.md and the figure; of another attention_times*.json a table named likewise.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from _machine import environment, interleaved, peak_mib
from attention_calls import Setting, contenders, matrix_product
from attention_report import report

from ia_core.conformance._files import write_whole

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs/results/attention_times.json"
LIBRARIES, PRESETS = ("torch", "jax", "numpy"), ("contract", "grid")
SIZES, SHAPES, HIDDEN = (128, 512, 2048, 8192), ((8, 64), (4, 128)), (16, 64, 512)
# A comparison that takes longer, or ends otherwise, is made once more without the contender that did.
SECONDS = 1800
NOW = "now "
CALLS = 300  # of 16 by 16 scores, for each number of the dispatch


class Comparison(NamedTuple):
    """One library, a setting and a number of threads; ``alone`` measures the memory of ours, with the kernel in C and
    without, and nothing else.
    """

    library: str
    setting: Setting
    threads: int
    alone: bool = False

    @property
    def name(self) -> str:
        n, heads, width, hidden, positions, gradients = self.setting
        what = "forward + backward" if gradients else "forward"
        size = f"{n}, {heads} x {width}, {hidden} hidden, {positions} positions"
        return f"{self.library}, {what}, {size}, {self.threads} threads{', memory alone' if self.alone else ''}"


def comparisons(presets: list[str], libraries: list[str]) -> Iterator[Comparison]:
    """All of them, what the contract asks for first."""
    both = (False, True)
    for library in libraries:
        if "contract" in presets:
            n = 2048 if library == "numpy" else 4096
            kinds = ((64, "real"), (512, "real"), (64, "integer"))
            for gradients, (hidden, positions), threads in itertools.product(both, kinds, (2, 1)):
                yield Comparison(library, Setting(n, 8, 64, hidden, positions, gradients), threads)
            for gradients in both:
                yield Comparison(library, Setting(32768, 8, 64, 64, "real", gradients), 2, alone=True)
        if "grid" in presets:
            threads = os.cpu_count() or 1
            for n, shape, hidden, at, gradients in itertools.product(SIZES, SHAPES, HIDDEN, ("real", "integer"), both):
                yield Comparison(library, Setting(n, *shape, hidden, at, gradients), threads)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    what = parser.add_subparsers(dest="what", required=True)
    run = what.add_parser("run")
    run.add_argument("--preset", nargs="+", choices=PRESETS, default=list(PRESETS))
    run.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    run.add_argument("--only", default="", help="comparisons whose name has this in it")
    run.add_argument("--rounds", type=int, default=7)
    run.add_argument("--most", type=float, default=20.0)
    one = what.add_parser("one", help="one comparison, in this process: what run starts")
    one.add_argument("--library", required=True)
    one.add_argument("--setting", required=True)
    one.add_argument("--rounds", type=int, required=True)
    one.add_argument("--most", type=float, required=True)
    one.add_argument("--without", nargs="*", default=[])
    one.add_argument("--memory-of", default="")
    for sub in (run, what.add_parser("report")):
        sub.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.what == "run" and options.rounds < 7:
        parser.error("fewer than 7 rounds say nothing about the spread")
    if options.what == "report":
        return report(json.loads(options.out.read_text(encoding="utf-8")), options.out.stem)
    return run_all(options) if options.what == "run" else run_one(options)


def run_all(options: argparse.Namespace) -> int:
    facts = environment(sorted(LIBRARIES))
    record = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    if record.get("environment") != facts:
        record = {"environment": facts, "comparisons": {}}
    wanted = [one for one in comparisons(options.preset, options.libraries) if options.only in one.name]
    wanted = [one for one in wanted if not (one.library == "numpy" and one.setting.gradients)]
    try:
        if "torch" in options.libraries and "dispatch" not in record:
            record["dispatch"] = dispatch()
            write_whole(options.out, json.dumps(record, indent=1) + "\n")
        for count, one in enumerate(wanted, start=1):
            if one.name in record["comparisons"]:
                continue
            found = compare(one, options)
            about = {"date": datetime.date.today().isoformat(), "most": options.most}
            record["comparisons"][one.name] = {**one._asdict(), "setting": one.setting._asdict(), **about, **found}
            write_whole(options.out, json.dumps(record, indent=1) + "\n")
            ratios = {who: each["ratio"]["median"] for who, each in found["contenders"].items() if "ratio" in each}
            print(f"{count} of {len(wanted)}: {one.name}: {ratios or found}", flush=True)
    except KeyboardInterrupt:
        print("stopped; what is finished is kept", file=sys.stderr)
        return 130
    return 0


def compare(one: Comparison, options: argparse.Namespace) -> dict[str, Any]:
    """Times of all contenders in one process, then the memory of each in a process of its own."""
    words = [sys.executable, __file__, "one", "--library", one.library, "--setting", json.dumps(one.setting)]
    words += ["--rounds", str(options.rounds), "--most", str(options.most)]
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    variables = os.environ | dict.fromkeys(names, str(one.threads))
    if one.threads == 1 and hasattr(os, "sched_setaffinity"):  # XLA has no option for the number of its threads
        words = ["taskset", "-c", "0", *words]

    def child(*more: str) -> dict[str, Any]:
        try:
            ended = subprocess.run(
                [*words, *more], env=variables, capture_output=True, text=True, check=False, timeout=SECONDS
            )
        except subprocess.TimeoutExpired as late:
            return {"failed": f"not done in {SECONDS} s", "during": _last_told((late.stderr or b"").decode())}
        if ended.returncode:
            lines = [line for line in ended.stderr.strip().splitlines() if not line.startswith(NOW)]
            why = "".join(lines[-1:]) or f"exit status {ended.returncode}"
            return {"failed": why, "during": _last_told(ended.stderr)}
        answer: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
        return answer

    if one.alone:
        return {"contenders": {name: child("--memory-of", name) for name in ("ours", "uncompiled")}}
    found = child()
    left_out: dict[str, Any] = {}
    while "failed" in found and found.get("during") and found["during"] not in left_out:
        left_out[found["during"]] = {"left_out": found["failed"]}
        found = child("--without", *left_out)
    if "failed" in found:
        return {"failed": found["failed"], "contenders": left_out}
    found["contenders"] |= left_out
    for name, each in found["contenders"].items():
        if "seconds" in each:
            each |= child("--memory-of", name)
    return found


def _last_told(said: str) -> str:
    """The contender that a comparison was about to call."""
    return next((line.removeprefix(NOW) for line in reversed(said.splitlines()) if line.startswith(NOW)), "")


def run_one(options: argparse.Namespace) -> int:
    """One comparison, in this process; the answer is the last line that it prints."""
    if options.library == "torch":
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    setting = Setting(*json.loads(options.setting))
    answer = memory(options, setting) if options.memory_of else times(options, setting)
    print(json.dumps(answer))
    return 0


def memory(options: argparse.Namespace, setting: Setting) -> dict[str, Any]:
    """After a small call, which loads what there is to load."""
    contenders(options.library, setting._replace(n=128))[options.memory_of]()()
    call = contenders(options.library, setting)[options.memory_of]()
    return {"peak_mib": round(peak_mib(call), 1)}


def times(options: argparse.Namespace, setting: Setting) -> dict[str, Any]:
    makers = contenders(options.library, setting)
    product, operations = matrix_product(options.library)
    makers["matrix product"] = lambda: product
    found: dict[str, Any] = {}
    calls: dict[str, Callable[[], Any]] = {}
    for name, make in makers.items():
        if name in options.without:
            continue
        print(f"{NOW}{name}", file=sys.stderr, flush=True)
        call = make()
        call()  # compiles what there is to compile
        began = time.perf_counter()
        call()
        second = time.perf_counter() - began
        if second > options.most:
            found[name] = {"left_out": f"a call took {second:.0f} s"}
        else:
            calls[name] = call
    seconds = interleaved(calls, options.rounds)
    rate = operations / statistics.median(seconds.pop("matrix product"))
    for name, each in seconds.items():
        found[name] = {"seconds": [float(f"{t:.4g}") for t in each]}
        if "plain" in seconds:
            ratios = [mine / plain for mine, plain in zip(each, seconds["plain"], strict=True)]
            low, _, high = statistics.quantiles(ratios, n=4)
            middle = statistics.median(each) / statistics.median(seconds["plain"])
            found[name]["ratio"] = {"median": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)]}
    return {"matrix_product_gflops": round(rate / 1e9, 1), "contenders": found}


def dispatch() -> dict[str, Any]:
    """Microseconds of a call of 16 queries on 16 keys in PyTorch, one thread: its own attention, and ours."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attention

    from ia_core.backends import indirect_attention

    torch.set_num_threads(1)
    q, k, v = torch.randn(3, 1, 8, 16, 64, generator=torch.Generator().manual_seed(0))

    def often(function: Callable[..., Any]) -> Callable[[], None]:
        return lambda: [function(q, k, v) for _ in range(CALLS)] and None

    calls = {"plain": often(attention), "ours": often(indirect_attention)}
    interleaved(calls, 3)
    seconds = interleaved(calls, 21)
    found = {name: [round(1e6 * t / CALLS, 2) for t in each] for name, each in seconds.items()}
    more = [ours - plain for plain, ours in zip(found["plain"], found["ours"], strict=True)]
    low, middle, high = statistics.quantiles(more, n=4)
    return {"microseconds": found, "more": {"median": round(middle, 2), "quartiles": [round(low, 2), round(high, 2)]}}


if __name__ == "__main__":
    sys.exit(main())
