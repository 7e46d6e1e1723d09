"""Units of work: in this process, or in several."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks._machine import environment

from ._registry import Unit, experiment
from ._results import path_of, plain, write_json
from ._train import trainer

__all__ = ["in_processes", "in_turn"]

Where = tuple[str, str, str]
_TRAINERS: dict[tuple[str, str], Any] = {}


def in_turn(left: list[Unit], where: Where, stop: float | None, jobs: int = 1) -> int:
    """One unit after the other, with its progress; how many are undone."""
    for number, unit in enumerate(left):
        if stop is not None and time.monotonic() > stop:
            return len(left) - number
        print(f"[{number + 1}/{len(left)}] {_name(unit)}", flush=True)
        do(unit, where, talk=True)
    return 0


def in_processes(left: list[Unit], where: Where, stop: float | None, jobs: int) -> int:
    """Units in fresh processes, a line for each that ends; how many are undone."""
    started = time.monotonic()
    waiting = list(reversed(left))
    context = multiprocessing.get_context("spawn")
    failed, ended = 0, 0
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
        running: dict[Any, Unit] = {}
        try:
            while waiting or running:
                while waiting and len(running) < jobs and (stop is None or time.monotonic() < stop):
                    unit = waiting.pop()
                    running[pool.submit(do, unit, where)] = unit
                if not running:
                    break
                done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    unit, ended = running.pop(future), ended + 1
                    error = future.exception()
                    failed += error is not None
                    result = f"FAILED: {error!r}" if error else future.result()
                    minutes, seconds = divmod(round(time.monotonic() - started), 60)
                    print(f"[{ended}/{len(left)} {minutes}:{seconds:02d}] {_name(unit)}: {result}", flush=True)
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():
                process.terminate()
            raise
    return len(waiting) + failed


def do(unit: Unit, where: Where, talk: bool = False) -> str:
    """Train, test and write the results of a unit; what came out, in one line."""
    framework, device, folder = where
    start = time.perf_counter()
    if (framework, device) not in _TRAINERS:
        _TRAINERS[framework, device] = trainer(framework, device)

    def say(line: str) -> None:
        if talk:
            print(f"    {time.perf_counter() - start:6.1f} s  {line}", file=sys.stderr, flush=True)

    own = _TRAINERS[framework, device]
    records = experiment(unit.experiment).run(unit.options, list(unit.seeds), own, unit.draw, say)
    seconds = time.perf_counter() - start
    about = {
        "experiment": unit.experiment,
        "variant": unit.variant,
        "draw": unit.draw,
        "framework": framework,
        "device": own.describe(),
        "stack": len(unit.seeds),
        "seconds_of_stack": round(seconds, 1),
        "options": plain(unit.options),
        "environment": environment(["numpy", framework] + (["optax"] if framework == "jax" else [])),
    }
    for seed, record in zip(unit.seeds, records, strict=True):
        write_json(path_of(Path(folder), unit, seed), {**about, "seed": seed, "results": record})
    return f"{experiment(unit.experiment).headline(records)} ({seconds:.0f} s)"


def _name(unit: Unit) -> str:
    seeds = f"seed {unit.seeds[0]}" if len(unit.seeds) == 1 else f"seeds {unit.seeds[0]} to {unit.seeds[-1]}"
    return f"{unit.experiment}, {unit.variant}, draw {unit.draw}, {seeds}"
