"""The synthetic tasks: against plain Python, and their distributions.

A check of frequencies accuses a correct generator with probability below 1e-6: of n independent draws, a
frequency is off by e with probability below 2 exp(-2 n e^2) (Hoeffding), so K of them hold together for
e = sqrt(log(2 K / 1e-6) / 2 n).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ia_core.tasks import RetrievalTask, SortingTask, retrieval_task, sorting_task

from .layer_cases import GRAPHS, MODULES, as_numpy, library

MANY = 40_000


def allowed(frequencies: int, draws: int) -> float:
    return math.sqrt(math.log(2.0 * frequencies / 1e-6) / (2.0 * draws))


def check_frequencies(codes: np.ndarray, cells: int, expected: float) -> None:
    frequencies = np.bincount(codes.ravel(), minlength=cells) / codes.size
    assert frequencies.size == cells
    assert abs(frequencies - expected).max() < allowed(cells, codes.size)


def sorted_index(ordering: list[int], letters: list[int]) -> list[int]:
    """By Python's sort, which is stable."""
    positions = sorted(range(len(letters)), key=lambda position: ordering.index(letters[position]))
    return [positions.index(position) for position in range(len(letters))]


def starts_of(run: list[int], reference: list[int]) -> list[int]:
    return [s for s in range(len(reference) - len(run) + 1) if reference[s : s + len(run)] == run]


@pytest.mark.parametrize(("length", "alphabet", "pool"), [(10, 10, 5), (7, 3, 2), (4, 9, 1), (1, 1, 1)])
def test_sorting_targets(length: int, alphabet: int, pool: int) -> None:
    task = sorting_task(0, 200, length=length, alphabet=alphabet, pool=pool)
    assert task.conditioning.shape == (200, alphabet)
    assert task.content.shape == task.target.shape == (200, length)
    for ordering, letters, target in zip(*(array.tolist() for array in task), strict=True):
        assert sorted(ordering) == list(range(alphabet))
        assert set(letters) <= set(range(alphabet))
        assert target == sorted_index(ordering, letters)
    orderings = {tuple(row) for row in task.conditioning.tolist()}
    assert len(orderings) <= pool


def test_sorting_target_is_the_stated_count() -> None:
    task = sorting_task(1, 50, alphabet=4)
    for ordering, y, target in zip(*(array.tolist() for array in task), strict=True):
        rank = {letter: place for place, letter in enumerate(ordering)}
        for i in range(10):
            before = sum(rank[y[k]] < rank[y[i]] for k in range(10)) + sum(y[k] == y[i] for k in range(i))
            assert target[i] == before


def test_train_and_test_share_the_pool() -> None:
    def pool(seed: int, **options: Any) -> set[tuple[int, ...]]:
        return {tuple(row) for row in sorting_task(seed, 2000, **options).conditioning.tolist()}

    # One of 5 orderings is missing from 2000 draws with probability 5 * 0.8^2000 < 1e-193.
    assert len(pool(0)) == 5
    assert pool(0) == pool(1) == pool(2, length=3)
    assert pool(0) != pool(0, pool_seed=1)
    assert pool(0, pool_seed=np.random.default_rng(0)) == pool(0)


@pytest.mark.parametrize("function", [sorting_task, retrieval_task])
def test_a_seed_gives_the_same_instances(function: Any) -> None:
    for one, same, other in zip(function(3, 50), function(3, 50), function(4, 50), strict=True):
        assert one.dtype == np.int64
        np.testing.assert_array_equal(one, same)
        assert (one != other).any()
    rng = np.random.default_rng(3)
    np.testing.assert_array_equal(function(rng, 50).content, function(3, 50).content)
    assert (function(rng, 50).content != function(3, 50).content).any()


def test_sorting_draws_letters_and_orderings_uniformly_and_independently() -> None:
    task = sorting_task(11, MANY)
    _, ordering = np.unique(task.conditioning, axis=0, return_inverse=True)
    check_frequencies(ordering, 5, 1 / 5)
    check_frequencies(task.content, 10, 1 / 10)
    check_frequencies(ordering * 10 + task.content[:, 3], 50, 1 / 50)
    check_frequencies(task.content[:, 0] * 10 + task.content[:, 9], 100, 1 / 100)


def test_pools_hold_random_permutations() -> None:
    rows = np.concatenate(
        [np.unique(sorting_task(0, 20, pool=1, pool_seed=seed).conditioning, axis=0) for seed in range(3000)]
    )
    assert rows.shape == (3000, 10)
    for place in (0, 4, 9):
        check_frequencies(rows[:, place], 10, 1 / 10)


@pytest.mark.parametrize(("length", "run", "vocabulary"), [(10, 3, 10), (6, 6, 3), (5, 1, 2), (4, 2, 1)])
def test_retrieval_targets(length: int, run: int, vocabulary: int) -> None:
    task = retrieval_task(0, 300, length=length, run=run, vocabulary=vocabulary)
    assert task.conditioning.shape == (300, run) and task.content.shape == (300, length)
    assert task.target.shape == (300,)
    for tokens, reference, start in zip(*(array.tolist() for array in task), strict=True):
        assert set(tokens) | set(reference) <= set(range(vocabulary))
        assert start in starts_of(tokens, reference)


def test_retrieval_draws_uniformly() -> None:
    task = retrieval_task(12, MANY)
    check_frequencies(task.target, 8, 1 / 8)
    check_frequencies(task.conditioning, 10, 1 / 10)
    check_frequencies(task.content, 10, 1 / 10)
    check_frequencies(task.target * 10 + task.conditioning[:, 1], 80, 1 / 80)
    # What stands beside the run is drawn afresh: the token before it, where there is one.
    inside = np.flatnonzero(task.target > 0)
    before = task.content[inside, task.target[inside] - 1]
    check_frequencies(task.conditioning[inside, 0] * 10 + before, 100, 1 / 100)


def occurrences(task: RetrievalTask) -> np.ndarray:
    starts = range(task.content.shape[1] - task.conditioning.shape[1] + 1)
    width = task.conditioning.shape[1]
    return sum((task.content[:, s : s + width] == task.conditioning).all(axis=1).astype(int) for s in starts)


def test_a_run_occurs_again_as_often_as_the_docstring_says() -> None:
    """Each of the 7 other starts matches with probability 1/1000: at most 0.7 % of the runs occur again.

    Each of the 21 pairs of other starts matches with probability at most 1e-4 (three tokens alike, and so their
    two neighbours): at least 0.49 % occur again. A count of mean m or less exceeds (1 + d) m with probability
    below exp(-m d^2 / 3), one of mean m or more falls below (1 - d) m with exp(-m d^2 / 2) (Chernoff).
    """
    draws = 200_000
    share = (occurrences(retrieval_task(13, draws)) > 1).mean()
    d = math.sqrt(3.0 * math.log(2.0 / 1e-6) / (0.0049 * draws))
    assert 0.0049 * (1.0 - d) < share < 0.007 * (1.0 + d)


def test_unique_draws_again_only_what_is_ambiguous() -> None:
    plain, unique = retrieval_task(14, 2000), retrieval_task(14, 2000, unique=True)
    ambiguous = occurrences(plain) > 1
    assert ambiguous.any()
    assert (occurrences(unique) == 1).all()
    for before, after in zip(plain, unique, strict=True):
        np.testing.assert_array_equal(after[~ambiguous], before[~ambiguous])


def test_unique_holds_where_most_draws_are_ambiguous() -> None:
    task = retrieval_task(0, 100, length=8, run=1, vocabulary=2, unique=True)
    assert (occurrences(task) == 1).all()


@pytest.mark.parametrize("name", MODULES | GRAPHS)
def test_tasks_in_every_library(name: str) -> None:
    xp = library(name)
    for function, type_ in ((sorting_task, SortingTask), (retrieval_task, RetrievalTask)):
        there = function(5, 6, xp=xp)
        assert type(there) is type_
        for array, want in zip(there, function(5, 6), strict=True):
            assert "int64" in str(array.dtype)
            np.testing.assert_array_equal(as_numpy(array), want)


def test_no_instances_and_a_device() -> None:
    assert [array.shape for array in sorting_task(0, 0)] == [(0, 10), (0, 10), (0, 10)]
    assert [array.shape for array in retrieval_task(0, 0, unique=True)] == [(0, 3), (0, 10), (0,)]
    torch = library("torch")
    assert retrieval_task(0, 2, xp=torch, device="meta").target.device.type == "meta"


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: sorting_task(0, -1), r"`instances` must be an integer, not negative; got -1 \[IA-X-33\]"),
        (lambda: sorting_task(0, 2.5), r"`instances` must be an integer, not negative; got 2.5 \[IA-X-33\]"),
        (lambda: sorting_task(0, 1, length=0), r"`length` must be a positive integer; got 0 \[IA-X-33\]"),
        (lambda: sorting_task(0, 1, alphabet=0), r"`alphabet` must be a positive integer; got 0 \[IA-X-33\]"),
        (lambda: sorting_task(0, 1, pool=0), r"`pool` must be a positive integer; got 0 \[IA-X-33\]"),
        (
            lambda: retrieval_task(0, True),
            r"`instances` must be an integer, not negative; got True \[IA-X-33\]",
        ),
        (lambda: retrieval_task(0, 1, run=0), r"`run` must be a positive integer; got 0 \[IA-X-33\]"),
        (lambda: retrieval_task(0, 1, vocabulary=0), r"`vocabulary` must be .*; got 0 \[IA-X-33\]"),
        (lambda: retrieval_task(0, 1, run=11), r"`run` must be at most length = 10; got 11 \[IA-X-33\]"),
        (
            lambda: retrieval_task(0, 1, vocabulary=1, unique=True),
            r"`unique` instances, a run of 3 in 10 tokens from 1, are too rare: 1000 draws .* \[IA-X-33\]",
        ),
    ],
)
def test_bad_input(call: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()
