"""Everything that a GPU has to say, in the order of its worth, for who has one for some minutes.

    python benchmarks/on_gpu.py [--out DIR] [--only TEXT] [--list]

Stages follow one another; the commands of a stage run side by side, those of a stage of timings one by one. A command
that takes longer than its limit is interrupted, as by Ctrl-C, and keeps what it has. Its output is DIR/NAME.log, its
results are DIR/NAME.json. The suite's reports become DIR/conformance.json, which
``benchmarks/conformance_record.py`` reads; the times go to docs/results by hand.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
GRACE = 20.0  # seconds from an interruption to the end by force


class Command(NamedTuple):
    """A command of a stage: words behind `python`, where {out} is the folder and {json} the file of its results."""

    name: str
    words: str
    limit: float


def _suite(target: str, limit: float, workers: int) -> Command:
    words = f"-m ia_core._cli conform benchmarks.gpu_kernels:{target} --profile quick --workers {workers}"
    return Command(f"suite-{target}", f"{words} --json {{json}} --keep {{out}}/kept-{target}", limit)


STAGES = (
    (
        Command("compile", "benchmarks/compile_gpu.py --seconds 80", 90.0),
        Command("smoke-jax", "benchmarks/bench_gpu_jax.py --smoke --seconds 80", 90.0),
    ),
    (Command("times", "benchmarks/bench_gpu.py --seconds 70 --out {json}", 90.0),),
    (Command("times-jax", "benchmarks/bench_gpu_jax.py --seconds 55 --out {json}", 70.0),),
    (Command("sweep", "benchmarks/bench_gpu.py --sweep --seconds 60 --out {json}", 75.0),),
    (
        _suite("torch_triton", 220.0, 5),
        _suite("jax_pallas", 220.0, 5),
        _suite("torch_triton_rounded", 220.0, 3),
        _suite("torch_flex_knots", 220.0, 3),
    ),
)


def main() -> int:
    """Run the stages; 0 if every command ended well."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build/on_gpu")
    parser.add_argument("--only", default="", help="commands whose name has this in it")
    parser.add_argument("--list", action="store_true", help="say what would run")
    options = parser.parse_args()
    options.out = options.out.resolve()  # commands run in the project's folder
    stages = [[one for one in stage if options.only in one.name] for stage in STAGES]
    if options.list:
        for stage in stages:
            for one in stage:
                print(f"{one.name:28} at most {one.limit:.0f} s: python {one.words}")
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    failed: list[str] = []
    try:
        for stage in stages:
            failed += together(stage, options.out)
    except KeyboardInterrupt:
        print("stopped; what ended is kept", file=sys.stderr)
        failed.append("the rest")
    gather(options.out)
    print(f"not well: {', '.join(failed)}" if failed else "all well")
    return min(len(failed), 1)


def together(stage: list[Command], out: Path) -> list[str]:
    """Run commands side by side, each within its limit; names of those that did not end well."""
    start = time.monotonic()
    running: dict[Command, subprocess.Popen[bytes]] = {}
    failed = []
    try:
        for one in stage:
            words = one.words.format(out=out, json=out / f"{one.name}.json").split()
            with (out / f"{one.name}.log").open("wb") as log:
                running[one] = subprocess.Popen(
                    [sys.executable, *words],
                    cwd=ROOT,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # so that Ctrl-C comes once, from here
                )
        for one, process in running.items():
            status = within(process, start + one.limit)
            failed += [one.name] if status != 0 else []
            tail = (out / f"{one.name}.log").read_text(errors="replace").strip().splitlines()[-3:]
            print(f"{one.name}: status {status} after {time.monotonic() - start:.0f} s", *tail, sep="\n  ", flush=True)
    finally:
        for process in running.values():
            within(process, time.monotonic())
    return failed


def within(process: subprocess.Popen[bytes], until: float) -> int:
    """The status of a process, which is interrupted at a time and ended GRACE later."""
    for signal_ in (signal.SIGINT, signal.SIGKILL):
        try:
            return process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal_)
            until = time.monotonic() + GRACE
    return process.wait()


def gather(out: Path) -> None:
    """One record of the suite's reports; it names the device, and so is made where they were."""
    reports = sorted(map(str, out.glob("suite-*.json")))
    if reports:
        record = [sys.executable, "benchmarks/conformance_record.py", "gather", *reports]
        subprocess.run([*record, "--out", str(out / "conformance.json")], cwd=ROOT, check=False)


if __name__ == "__main__":
    sys.exit(main())
