"""What needs no attention: the best path through the encoder's frames, and phones spread evenly."""

from __future__ import annotations

import numpy as np

__all__ = ["uniform_onsets", "viterbi_onsets"]

NEVER = -1e9


def uniform_onsets(count: np.ndarray, length: np.ndarray, phones: int) -> np.ndarray:
    """Onsets (n, phones) of phones of equal length over the whole utterance."""
    return np.arange(phones) * (length / count)[:, None]


def viterbi_onsets(scores: np.ndarray, phones: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Onsets (n, phones) of the most probable path: phones in order, silence between any two of them or not.

    scores (n, T, V + 1) are log-probabilities; silence is class 0. States alternate between silence and phone.
    """
    n, T, _ = scores.shape
    states = np.zeros((n, 2 * phones.shape[1] + 1), int)
    states[:, 1::2] = phones
    spoken = np.arange(states.shape[1]) % 2 == 1
    emitted = np.take_along_axis(scores, states[:, None, :], axis=2)  # (n, T, states)
    best = np.full(states.shape, NEVER)
    best[:, :2] = emitted[:, 0, :2]
    came = np.zeros((n, T, states.shape[1]), np.int8)
    for t in range(1, T):
        one, two = (np.pad(best, ((0, 0), (back, 0)), constant_values=NEVER)[:, : best.shape[1]] for back in (1, 2))
        options = np.stack([best, one, np.where(spoken, two, NEVER)])
        came[:, t] = options.argmax(axis=0)
        best = options.max(axis=0) + emitted[:, t]
    rows, last = np.arange(n), 2 * count
    state = np.where(best[rows, last] > best[rows, last - 1], last, last - 1)
    onsets = np.zeros(phones.shape)
    for t in range(T - 1, -1, -1):
        phone = state % 2 == 1
        onsets[rows[phone], state[phone] // 2] = t
        state = state - came[rows, t, state]
    return onsets
