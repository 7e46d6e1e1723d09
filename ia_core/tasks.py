"""The two synthetic tasks of the paper's comparison, as data generators.

==================  ==========================  ==============================================
array               shape                       meaning
==================  ==========================  ==============================================
conditioning        (B, alphabet) or (B, run)   the ordering; the run to find
content             (B, length)                 the letters to sort; the reference
target              (B, length) or (B,)         sorted index of each letter; where the run starts
==================  ==========================  ==============================================

Section 6.1 of arXiv 2509.26015. Random numbers are not in the array API standard, so NumPy draws them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ._convert import to_library
from ._params import check_sizes, random_generator

if TYPE_CHECKING:
    from jaxtyping import Int

    from ._arrays import Array, Namespace

__all__ = ["RetrievalTask", "SortingTask", "retrieval_task", "sorting_task"]

_MOST_DRAWS = 1000


class SortingTask(NamedTuple):
    """Instances of sorting by an arbitrary ordering.

    Attributes
    ----------
    conditioning : integer array of shape (B, alphabet)
        The ordering: a permutation of the letters 0 .. alphabet - 1, the smallest first.
    content : integer array of shape (B, length)
        The letters to sort.
    target : integer array of shape (B, length)
        Where each letter stands after the sort.

    Examples
    --------
    >>> sorting_task(0, 3).target.shape
    (3, 10)
    """

    conditioning: Int[Array, "B alphabet"]
    content: Int[Array, "B length"]
    target: Int[Array, "B length"]


class RetrievalTask(NamedTuple):
    """Instances of sequence retrieval.

    Attributes
    ----------
    conditioning : integer array of shape (B, run)
        The run of tokens to find.
    content : integer array of shape (B, length)
        The reference that contains it.
    target : integer array of shape (B,)
        Where the run was placed.

    Examples
    --------
    >>> retrieval_task(0, 3).target.shape
    (3,)
    """

    conditioning: Int[Array, "B run"]
    content: Int[Array, "B length"]
    target: Int[Array, "B"]


def sorting_task(
    seed: Any,
    instances: int,
    *,
    length: int = 10,
    alphabet: int = 10,
    pool: int = 5,
    pool_seed: Any = 0,
    xp: Namespace | None = None,
    device: Any = None,
) -> SortingTask:
    """Sorting by an arbitrary ordering: for each letter, its index after a stable sort.

    Each instance takes one of the pool's orderings, uniformly, and ``length`` letters, uniformly with
    replacement. With ``rank(c)`` the place of letter c in the ordering, the target of position i is the
    number of positions that come before it::

        target_i = #{k : rank(y_k) < rank(y_i)} + #{k < i : y_k = y_i}

    Parameters
    ----------
    seed : int or numpy.random.Generator
        Of the instances.
    instances : int
        B; 0 is allowed.
    length, alphabet, pool : int
        Letters in an instance, letters there are, orderings there are.
    pool_seed : int or numpy.random.Generator
        Of the pool: training and test data that share it share the orderings.
    xp : namespace, optional
        The array library; NumPy by default.
    device : optional
        A device of that library.

    Returns
    -------
    SortingTask
        Of the library's 64-bit integers (JAX without 64 bits: 32).

    Raises
    ------
    ValueError
        If a size is not positive (IA-X-33).

    Notes
    -----
    Section 6.1 of arXiv 2509.26015: a fixed pool of 5 permutations of 10 letters. Letters repeat, so that
    "its index" needs the rule above: equal letters keep their order (a stable sort), and the targets of an
    instance are a permutation of 0 .. length - 1. Orderings are drawn independently, so that a pool may hold
    one twice: by chance (3 pools in a million at the default sizes), or because the alphabet has too few.

    Examples
    --------
    >>> task = sorting_task(0, 1, length=4, alphabet=3, pool_seed=1)
    >>> task.conditioning, task.content, task.target
    (array([[2, 1, 0]]), array([[1, 1, 0, 0]]), array([[0, 1, 2, 3]]))
    """
    check_sizes(length=length, alphabet=alphabet, pool=pool)
    _check_instances(instances)
    orderings = random_generator(pool_seed).permuted(np.tile(np.arange(alphabet), (pool, 1)), axis=1)
    rng = random_generator(seed)
    ordering = orderings[rng.integers(pool, size=instances)]  # (B, alphabet)
    letters = rng.integers(alphabet, size=(instances, length))
    rank = np.take_along_axis(np.argsort(ordering, axis=1), letters, axis=1)  # (B, length)
    order = np.argsort(rank, axis=1, kind="stable")  # position that comes n-th
    task = SortingTask(ordering, letters, np.argsort(order, axis=1))
    return SortingTask(*_give(task, xp, device))


def retrieval_task(
    seed: Any,
    instances: int,
    *,
    length: int = 10,
    run: int = 3,
    vocabulary: int = 10,
    unique: bool = False,
    xp: Namespace | None = None,
    device: Any = None,
) -> RetrievalTask:
    """Sequence retrieval: where in a reference a run of tokens starts.

    The run and the reference are drawn uniformly with replacement, the start uniformly from
    0 .. length - run, and the run is written into the reference there.

    Parameters
    ----------
    seed : int or numpy.random.Generator
    instances : int
        B; 0 is allowed.
    length, run, vocabulary : int
        Tokens in the reference, tokens in the run (at most length), tokens there are.
    unique : bool
        Draw an instance again until its run occurs once.
    xp : namespace, optional
        The array library; NumPy by default.
    device : optional
        A device of that library.

    Returns
    -------
    RetrievalTask
        Of the library's 64-bit integers (JAX without 64 bits: 32).

    Raises
    ------
    ValueError
        If a size is not positive, the run is longer than the reference, or unique instances are too rare to
        be found (IA-X-33).

    Notes
    -----
    Section 6.1 of arXiv 2509.26015: a run of 3 of 10 tokens in a reference of 10. By chance the run may occur
    again (at the default sizes in 0.7 % of the instances, as each of the 7 other starts has probability
    1/1000); the target is then where it was placed, which nobody can tell from the data. With ``unique`` the
    instances are those of the task under the condition that the run occurs once.

    Examples
    --------
    >>> task = retrieval_task(0, 1)
    >>> task.conditioning, task.content, task.target
    (array([[8, 6, 5]]), array([[2, 3, 0, 0, 8, 6, 5, 6, 9, 5]]), array([4]))
    """
    check_sizes(length=length, run=run, vocabulary=vocabulary)
    _check_instances(instances)
    if run > length:
        raise ValueError(f"`run` must be at most length = {length}; got {run} [IA-X-33]")
    rng = random_generator(seed)
    task = _draw_retrieval(rng, instances, length, run, vocabulary)
    if unique:
        _make_unique(rng, task, vocabulary)
    return RetrievalTask(*_give(task, xp, device))


def _draw_retrieval(rng: Any, instances: int, length: int, run: int, vocabulary: int) -> RetrievalTask:
    tokens = rng.integers(vocabulary, size=(instances, run))
    reference = rng.integers(vocabulary, size=(instances, length))
    start = rng.integers(length - run + 1, size=instances)
    np.put_along_axis(reference, start[:, None] + np.arange(run), tokens, axis=1)
    return RetrievalTask(tokens, reference, start)


def _make_unique(rng: Any, task: RetrievalTask, vocabulary: int) -> None:
    """Draw again, in place, the instances whose run occurs more than once."""
    (_, run), length = task.conditioning.shape, task.content.shape[1]
    for _ in range(_MOST_DRAWS):
        again = np.flatnonzero(_occurrences(task) > 1)
        if not again.size:
            return
        for kept, drawn in zip(task, _draw_retrieval(rng, again.size, length, run, vocabulary), strict=True):
            kept[again] = drawn
    raise ValueError(
        f"`unique` instances, a run of {run} in {length} tokens from {vocabulary}, are too rare: "
        f"{_MOST_DRAWS} draws did not find one [IA-X-33]"
    )


def _occurrences(task: RetrievalTask) -> Array:
    """How often each run stands in its reference, (B,)."""
    windows = np.lib.stride_tricks.sliding_window_view(task.content, task.conditioning.shape[1], axis=1)
    return (windows == task.conditioning[:, None, :]).all(axis=-1).sum(axis=-1)  # windows (B, starts, run)


def _check_instances(instances: Any) -> None:
    if not isinstance(instances, int | np.integer) or isinstance(instances, bool) or instances < 0:
        raise ValueError(f"`instances` must be an integer, not negative; got {instances!r} [IA-X-33]")


def _give(task: Any, xp: Namespace | None, device: Any) -> Any:
    return task if xp is None else to_library(task, xp, device=device)
