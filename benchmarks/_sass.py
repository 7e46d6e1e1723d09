"""Loops in the listing of a compiled kernel for NVIDIA's GPUs, as nvdisasm prints it."""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

__all__ = ["Loop", "loops"]

Part = tuple[int, int]
# A conditional branch that skips fewer instructions than these is what one thread does, such as a store.
LEAST_SKIPPED = 40


class Loop(NamedTuple):
    """Instructions of a loop: in any case, in each part that may be skipped, in each loop within."""

    always: Counter[str]
    skipped: list[Counter[str]]
    within: list[Counter[str]]


def loops(listing: str, having: str) -> list[Loop]:
    """The outermost loops with an instruction that is named so, in the order of the code."""
    code: list[str] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(code)
        elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            code.append(instruction[1])
    branches = []
    for at, instruction in enumerate(code):
        if target := re.search(r"\bBRA\b.*(\.L_x_\d+)", instruction):
            branches.append((at, labels[target[1]], instruction.startswith("@")))
    backward = sorted((to, at) for at, to, _ in branches if to <= at)
    outer = [one for one in backward if not any(a <= one[0] and one[1] <= b and (a, b) != one for a, b in backward)]
    return [
        _loop(code, start, end, backward, branches)
        for start, end in outer
        if any(having in instruction for instruction in code[start : end + 1])
    ]


def _loop(code: list[str], start: int, end: int, backward: list[Part], branches: list[tuple[int, int, bool]]) -> Loop:
    within = [(a, b + 1) for a, b in backward if start < a and b < end]
    skipped = [
        (at + 1, to)
        for at, to, conditional in branches
        if conditional and start <= at and at + LEAST_SKIPPED < to <= end and not any(a <= at < b for a, b in within)
    ]
    # An instruction belongs to the innermost part that it lies in.
    parts = sorted([*within, *skipped], key=lambda part: part[1] - part[0])
    own: dict[Part | None, list[str]] = {part: [] for part in [None, *parts]}
    for at in range(start, end + 1):
        own[next(((a, b) for a, b in parts if a <= at < b), None)].append(code[at])
    return Loop(_count(own[None]), *([_count(own[part]) for part in sorted(some)] for some in (skipped, within)))


def _count(instructions: list[str]) -> Counter[str]:
    """By name, without what follows a dot but for products of matrices, whose shape is there."""
    names = [re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0] for instruction in instructions]
    return Counter(name if name.startswith("HGMMA") else name.partition(".")[0] for name in names)
