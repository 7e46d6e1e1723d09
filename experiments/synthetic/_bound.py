"""What cross-attention without self-attention can know about sorting, and how often that is enough."""

from __future__ import annotations

import numpy as np

__all__ = ["most_without_the_others"]


def most_without_the_others(length: int = 10, alphabet: int = 10) -> float:
    """The accuracy of the best guess from the ordering, one's own letter and one's own position.

    With rank r of the letter at position i, the target counts the letters that come before it: each of the i earlier
    ones with probability (r + 1) / alphabet, as an equal letter comes first, and each of the length - 1 - i later ones
    with probability r / alphabet. They are drawn independently of all that the query sees, so that the target is the
    sum of two binomial numbers, and no guess is right more often than its most probable value.
    """
    total = 0.0
    for i in range(length):
        for r in range(alphabet):
            law = np.ones(1)
            for chance in [(r + 1) / alphabet] * i + [r / alphabet] * (length - 1 - i):
                law = np.convolve(law, [1.0 - chance, chance])
            total += law.max()
    return total / (length * alphabet)
