"""What a compiled function of XLA moves and multiplies, counted in its text with the trips of its loops."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import NamedTuple

__all__ = ["Counts", "count"]

COLLECTIVES = ("collective-permute", "all-reduce", "all-gather", "reduce-scatter", "all-to-all")
SIZES = {"pred": 1, "s8": 1, "u8": 1, "s32": 4, "u32": 4, "s64": 8, "u64": 8, "f16": 2, "bf16": 2, "f32": 4, "f64": 8}
HEAD = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
CALLED = re.compile(r"(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.-]+)")
TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')


class Counts(NamedTuple):
    """Of one device: bytes that collectives give it, by their names, how often each runs, and flops of products."""

    moved: dict[str, int]
    runs: dict[str, int]
    flops: int


def count(text: str) -> Counts:
    """Counts of the text of a compiled function.

    Raises
    ------
    ValueError
        If a loop that holds what is counted does not say how often it runs.
    """
    bodies, entry = _computations(text)
    moved: Counter[str] = Counter()
    runs: Counter[str] = Counter()
    flops = 0

    def visit(name: str, times: int | None) -> None:
        nonlocal flops
        shapes: dict[str, list[int]] = {}
        for line in bodies[name]:
            left, _, right = line.partition(" = ")
            found = SHAPE.findall(right.partition("(")[0] if not right.startswith("(") else right.partition(") ")[0])
            kind = _operation(right)
            if found:
                shapes[left.replace("ROOT ", "").strip().lstrip("%")] = _dims(found[0][1])
            if kind == "dot" or kind.removesuffix("-start") in COLLECTIVES:
                if times is None:
                    raise ValueError(f"a loop around this does not say how often it runs: {line[:120]}")
                if kind == "dot":
                    flops += times * 2 * math.prod(_dims(found[0][1])) * _contracted(right, shapes)
                else:
                    # One that is started gives its operand beside its result; several may be joined into one.
                    results = found[1:2] if kind.endswith("-start") else found
                    kind = kind.removesuffix("-start")
                    moved[kind] += times * sum(SIZES[dtype] * math.prod(_dims(dims)) for dtype, dims in results)
                    runs[kind] += times
            inner = times
            if kind == "while":
                trips = TRIPS.search(line)
                inner = None if trips is None or times is None else times * int(trips[1])
            for called in CALLED.findall(line):
                visit(called, inner)

    visit(entry, 1)
    return Counts(dict(moved), dict(runs), flops)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    bodies: dict[str, list[str]] = {}
    name = entry = ""
    for line in text.splitlines():
        head = HEAD.match(line)
        if head:
            name = head[1]
            bodies[name] = [f"%{part.strip()} parameter(" for part in _parameters(line)]
            entry = name if line.startswith("ENTRY") else entry
        elif line.startswith("  ") and name:
            bodies[name].append(line.strip())
    return bodies, entry


def _parameters(head: str) -> list[str]:
    """``name = dtype[dims]`` of the parameters of a computation."""
    inside = head[head.index("(") + 1 : head.rindex(") ->")]
    return [f"{name} = {dtype}[{dims}]" for name, dtype, dims in re.findall(r"([\w.-]+): (\w+)\[([\d,]*)\]", inside)]


def _operation(right: str) -> str:
    """The name of an operation, behind the shape of its result."""
    rest = right.partition(") ")[2] if right.startswith("(") else right.partition(" ")[2]
    return rest.partition("(")[0].strip()


def _dims(text: str) -> list[int]:
    return [int(size) for size in text.split(",") if size]


def _contracted(right: str, shapes: dict[str, list[int]]) -> int:
    """How many numbers a product of matrices sums for each of its results."""
    operand = re.search(r"dot\((?:\w+\[[\d,]*\](?:\{[\d,]*\})? )?%?([\w.-]+)", right)
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", right)
    if operand is None or axes is None or operand[1] not in shapes:
        raise ValueError(f"no operand is known of: {right[:120]}")
    return math.prod(shapes[operand[1]][axis] for axis in _dims(axes[1]))
