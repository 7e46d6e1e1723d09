"""Family D: determinism and state - what a call leaves behind, and what it may depend on."""

from __future__ import annotations

import ctypes
import glob
import io
import os
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import numpy as np

from ia_core import LinearOffset, PositionBias

from ._calls import QKV, asked, first_line, gradients, named_arrays
from ._case import Case, rng_of
from ._clause import clause, conforms, within
from ._implementation import Failure, Implementation
from ._libraries import (
    NotSupported,
    changed_settings,
    from_library,
    numpy_dtype,
    other_random_states,
    random_states,
    settings_of,
    to_library,
)

__all__: list[str] = []


@clause("IA-D-01", "inputs are not written to")
def not_mutated(implementation: Implementation, case: Case) -> None:
    cases = [case]
    if "position_bias" in implementation.claims:
        H, M, N = case.scores_shape[-3:]
        slopes = np.ones(H, "float64" if case.dtype == "float64" else "float32")
        cases.append(case.but(bias=PositionBias(LinearOffset(slopes), np.arange(M), np.arange(N))))
    for one in cases:
        _arguments_not_mutated(implementation, one)
    if "grad" in implementation.claims:
        _cotangent_not_mutated(implementation, case)


def _arguments_not_mutated(implementation: Implementation, case: Case) -> None:
    arrays, keywords = implementation.arguments(case)
    named = named_arrays(arrays, keywords)
    before = {name: from_library(array)[0].copy() for name, array in named.items()}
    asked(case, lambda: implementation.fn(*arrays, **keywords), "call")
    for name, array in named.items():
        if not np.array_equal(before[name], from_library(array)[0], equal_nan=True):
            raise Failure(f"`{name}` was written to", case)


def _cotangent_not_mutated(implementation: Implementation, case: Case) -> None:
    do = rng_of(case).standard_normal(case.output_shape).astype(case.query.dtype)
    kept: list[Any] = []

    def keep(array: np.ndarray) -> Any:
        kept.append(to_library(np.array(array, order="C"), implementation.library, implementation.device))
        kept.append(from_library(kept[0])[0].copy())
        return kept[0]

    gradients(implementation, case, do, wrt=QKV, place_cotangent=keep)
    if not np.array_equal(kept[1], from_library(kept[0])[0]):
        raise Failure("the cotangent was written to", case)


@clause("IA-D-02", "the same call gives the same bits")
def repeatable(implementation: Implementation, case: Case) -> None:
    first, second = (implementation.run(case).output for _ in range(2))
    within("output of the second call", second, first, 0.0, case)


@clause("IA-D-03", "a call does not depend on the calls before it", needs={"scale"}, scale="given", least=2)
def no_state(implementation: Implementation, case: Case) -> None:
    first, bound = conforms(implementation, case)
    arrays, keywords = implementation.arguments(case)
    kept = asked(case, lambda: implementation.fn(*arrays, **keywords), "call")
    conforms(implementation, case.but(scale=2 * case.scale + 1))
    conforms(implementation, _other_numbers(case))
    implementation.run(case.but(query=case.query[..., :1, :], bias=None, mask=None))
    # An output is the caller's: later calls do not write to it.
    output = implementation.received(kept, case, "output", case.output_shape)[0]
    within("output looked at after other calls", output, first, 2 * bound, case)
    within("output after other calls", implementation.run(case).output, first, 2 * bound, case)


def _other_numbers(case: Case) -> Case:
    """A call of the same shapes."""
    rng = rng_of(case)

    def other(array: Any) -> Any:
        if array is None or array.dtype == bool:  # a mask that differs, and leaves each row a key
            return None if array is None else np.where(rng.random(array.shape) < 0.5, True, array)
        return rng.standard_normal(array.shape).astype(array.dtype)

    names = ("query", "key", "value", "bias", "mask")
    return case.but(**{name: other(getattr(case, name)) for name in names})


@clause(
    "IA-D-04",
    "an element of the batch, and a row, gives the same bits alone",
    needs={"batch_invariant"},
    telling=False,
    bias="none",
    mask="none",
)
def batch_invariant(implementation: Implementation, case: Case) -> None:
    # Kernels change their way with the number of rows: sizes beyond one tile of a small product.
    rng, kind = rng_of(case), numpy_dtype(case.dtype)
    B, H, M, N, D = 3, 2, int(rng.integers(9, 18)), int(rng.integers(33, 80)), 16
    query, key, value = (rng.standard_normal((B, H, rows, D)).astype(kind) for rows in (M, N, N))
    whole = case.but(query=query, key=key, value=value)
    together, _ = conforms(implementation, whole)
    for b in range(B):
        alone = case.but(query=query[b : b + 1], key=key[b : b + 1], value=value[b : b + 1])
        got = implementation.run(alone).output
        within(f"output of element {b} alone", got, together[b : b + 1], 0.0, alone)
    for rows in (slice(0, 1), slice(M - 1, M), slice(1, 6)):
        alone = case.but(query=query[..., rows, :], key=key, value=value)
        got = implementation.run(alone).output
        within(f"output of rows {rows.start} to {rows.stop - 1} alone", got, together[..., rows, :], 0.0, alone)


@clause("IA-D-05", "global random states are left as they were")
def random_states_unchanged(implementation: Implementation, case: Case) -> None:
    with other_random_states(77_000_000 + case.seed):
        before = random_states(implementation.library)
        _exercise(implementation, case)
        _unchanged("the random state of", before, random_states(implementation.library), case, show=False)


@clause("IA-D-06", "defaults, modes, error states and flags of the process are left as they were")
def settings_unchanged(implementation: Implementation, case: Case) -> None:
    usual = settings_of(implementation.library)
    _exercise(implementation, case)
    _unchanged("the setting", usual, settings_of(implementation.library), case)
    with warnings.catch_warnings(), changed_settings(implementation.library):
        warnings.simplefilter("ignore")  # the changed error states warn
        changed = settings_of(implementation.library)
        implementation.run(case)
        after = settings_of(implementation.library)
    _unchanged("the setting", changed, after, case)


def _exercise(implementation: Implementation, case: Case) -> None:
    """A call and, where gradients are claimed, theirs."""
    implementation.run(case)
    if "grad" in implementation.claims:
        gradients(implementation, case, np.ones(case.output_shape, case.query.dtype), wrt=QKV)


def _unchanged(
    what: str, before: Mapping[str, Any], after: Mapping[str, Any], case: Case, *, show: bool = True
) -> None:
    for name in before:
        if before[name] != after[name]:
            became = f": it was {before[name]}, became {after[name]}" if show else ""
            raise Failure(f"{what} {name} was changed{became}", case)


@clause("IA-D-07", "nothing is written to the standard output and error")
def silent(implementation: Implementation, case: Case) -> None:
    with _captured() as written, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a warning has its own channel, which the caller filters
        _exercise(implementation, case)
    for name, text in written.items():
        if text:
            raise Failure(f"it wrote to the standard {name}: {first_line(Exception(text))!r}", case)


@contextmanager
def _captured() -> Iterator[dict[str, str]]:
    """What reaches file descriptors 1 and 2, and what Python's own streams are given."""
    written = {"output": "", "error": ""}
    with ExitStack() as stack:
        files = {}
        for name, fd in (("output", 1), ("error", 2)):
            try:
                saved = os.dup(fd)
            except OSError as error:
                raise NotSupported("this process has no standard output and error") from error
            stack.callback(os.close, saved)
            files[name] = stack.enter_context(tempfile.TemporaryFile())
            _flush()
            os.dup2(files[name].fileno(), fd)
            stack.callback(os.dup2, saved, fd)
        streams = {"output": io.StringIO(), "error": io.StringIO()}
        try:
            with redirect_stdout(streams["output"]), redirect_stderr(streams["error"]):
                yield written
        finally:
            _flush()
            for name, file in files.items():
                file.seek(0)
                written[name] = streams[name].getvalue() + file.read().decode(errors="replace")


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        if stream is not None and not stream.closed:
            stream.flush()
    if os.name == "posix":
        ctypes.CDLL(None).fflush(None)  # what native code has not written out yet


@clause("IA-D-08", "no threads and no processes are left")
def nothing_left(implementation: Implementation, case: Case) -> None:
    me = os.getpid()

    def call() -> None:
        try:
            _exercise(implementation, case)
        finally:
            if os.getpid() != me:  # it forked, and the child came back: it must not go on with the suite
                os._exit(0)

    call()  # pools that a library keeps for good are made once
    threads, processes = set(threading.enumerate()), _children()
    call()
    left = _remaining(lambda: {thread.name for thread in set(threading.enumerate()) - threads})
    if left:
        raise Failure(f"{len(left)} of its threads still run: {', '.join(sorted(left))}", case)
    alive = _remaining(lambda: _children() - processes)
    if alive:
        raise Failure(f"{len(alive)} of its processes are left", case)


def _remaining(look: Callable[[], set[Any]], seconds: float = 1.0) -> set[Any]:
    """What is still there after a while; things that are ending get the time to."""
    end = time.monotonic() + seconds
    while (left := look()) and time.monotonic() < end:
        time.sleep(0.01)
    return left


def _children() -> set[int]:
    """Children of this process, dead ones that nobody waited for included; empty where there is no /proc."""
    found: set[int] = set()
    for path in glob.glob("/proc/self/task/*/children"):
        try:
            with open(path) as file:
                found |= {int(pid) for pid in file.read().split()}
        except OSError:  # a thread that ended meanwhile
            continue
    return found
