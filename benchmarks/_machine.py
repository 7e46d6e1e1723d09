"""What benchmarks have in common: the machine that they ran on, calls in turn, and the memory of one call."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

__all__ = ["environment", "interleaved", "peak_mib"]

VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2"}  # the widest first
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def environment(libraries: Iterable[str]) -> dict[str, str]:
    """The machine and the versions, as far as the system tells them."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
        flags = next((line for line in lines if line.startswith("flags")), "").split()
        model += next((f" with {name}" for flag, name in VECTORS.items() if flag in flags), "")
    facts = {"processor": f"{model}, {os.cpu_count()} logical", "python": platform.python_version()}
    return facts | {name: importlib.metadata.version(name) for name in libraries if name != "cupy"}


def interleaved(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in each round; they take turns, in an order that changes."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in list(calls)[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_mib(call: Callable[[], Any]) -> float:
    """By how much the resident set grows at most while something is called, its result included."""
    if not CLEAR.exists():  # the largest of all time, which what came before may hide
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        call()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    CLEAR.write_text("5", encoding="utf-8")  # the largest begins anew
    before = _kilobytes("VmRSS")
    kept = call()
    grown = (_kilobytes("VmHWM") - before) / 1024
    del kept
    return grown


def _kilobytes(name: str) -> int:
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))
