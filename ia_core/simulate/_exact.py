"""Exact sums of float64 numbers, many at once: what is added first, and in which groups, does not matter.

=======  ==========================  ====================================================================
name     shape                       meaning
=======  ==========================  ====================================================================
levels   2 arrays (L,), or more      L sums, each the sum of its numbers in all levels, without any rounding
rows     the same                    the one such form that has each sum rounded in its first row, what that
                                     leaves rounded in the second, ..
=======  ==========================  ====================================================================

The sum of two float64 numbers is a rounded one and what that is off by, itself a float64 number. 106 bits hold the sums
over some 2^20 blocks whose numbers are not more than 2^30 apart; what is not held goes to further levels.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

__all__ = ["Levels", "add", "canonical", "fold", "two_product", "two_sum"]

Levels = tuple[Any, ...]
# From here on the levels are sorted out, in rational numbers and one by one: exact and slow, and hardly ever needed.
MOST_LEVELS = 6
# Splits a float64 number into two of 26 bits (Veltkamp).
SPLITTER = 2.0**27 + 1


def two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    """The sum rounded, and what that is off by (Knuth: whichever is larger)."""
    total = a + b
    other = total - a
    return total, (a - (total - other)) + (b - other)


def two_product(a: Any, b: Any) -> tuple[Any, Any]:
    """The product rounded, and what that is off by (Dekker)."""
    a1, a2 = _split(a)
    b1, b2 = (a1, a2) if a is b else _split(b)
    product = a * b
    return product, ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2


def add(levels: Levels, numbers: Any) -> Levels:
    """One more number in each sum."""
    found = []
    for level in levels:
        level, numbers = two_sum(level, numbers)
        found.append(level)
    if numbers.any():
        found.append(numbers)
    return tuple(found) if len(found) <= MOST_LEVELS else canonical(tuple(found))


def fold(levels: Levels, others: Levels) -> Levels:
    """The sums of two."""
    for numbers in others:
        levels = add(levels, numbers)
    return levels


def canonical(levels: Levels) -> Levels:
    """The rows of sums: the same for the same sums, however they came about."""
    first, second = two_sum(levels[0], levels[1])  # of two numbers these are the rows
    rows = [first, second]
    rest = levels[2:]
    for k in np.flatnonzero(np.any([level != 0 for level in rest], axis=0)) if rest else ():
        left, row = sum(Fraction(float(level[k])) for level in levels), 0
        while left or row < 2:
            if row == len(rows):
                rows.append(np.zeros_like(first))
            rows[row][k] = float(left)
            left -= Fraction(float(left))
            row += 1
        for further in rows[row:]:
            further[k] = 0.0
    return tuple(rows)


def _split(a: Any) -> tuple[Any, Any]:
    large = SPLITTER * a
    high = large - (large - a)
    return high, a - high
