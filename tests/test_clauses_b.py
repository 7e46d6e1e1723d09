"""Families G, T, D and R: every clause convicts a bug that is about it, and acquits the reference."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from ia_core import indirect_attention, indirect_attention_vjp
from ia_core.backends import indirect_attention as fast_attention
from ia_core.conformance import CLAUSES, FEATURES, Implementation, _libraries, judge
from ia_core.conformance._implementation import BASIC
from ia_core.conformance._own import references
from ia_core.conformance._verdict import dtypes_of

from .clause_mutants import (
    MUTANTS,
    NUMPY,
    TORCH,
    after,
    by_rows,
    compiled_for_five_keys,
    compiled_for_one_scale,
    cotangent_written,
    last_tile_of_gradients_lost,
    split_for_large_batches,
)

MINE = sorted(label for label in CLAUSES if label[3] in "GTDR")
TRANSFORMED = FEATURES - {"batch_invariant", "linear_memory"}


def implementation(fn: Callable[..., Any], library: str) -> Implementation:
    supports = TRANSFORMED if library != NUMPY else BASIC | {"position_bias"}
    if fn in (by_rows, split_for_large_batches):
        supports = BASIC - {"lse"} | {"batch_invariant"}
    return Implementation(fn, fn.__name__, library=library, supports=supports)


@pytest.fixture(autouse=True)
def process_as_it_was() -> Iterator[None]:
    """Mutants of family D change it for good."""
    errors = np.geterr()
    threads = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    yield
    np.seterr(**errors)
    if "torch" in sys.modules:
        import torch

        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
        torch.set_num_threads(threads or int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("label", "fn", "library"), MUTANTS, ids=lambda one: getattr(one, "__name__", str(one)))
def test_named_clause_convicts(label: str, fn: Callable[..., Any], library: str, seed: int) -> None:
    pytest.importorskip(library)
    verdict = judge(implementation(fn, library), CLAUSES[label], seed=seed)
    assert verdict.outcome == "fail", verdict


@pytest.mark.parametrize(("label", "vjp"), [("IA-G-13", last_tile_of_gradients_lost), ("IA-D-01", cotangent_written)])
def test_gradients_of_their_own(label: str, vjp: Callable[..., Any]) -> None:
    mine = Implementation(indirect_attention, vjp.__name__, supports=BASIC | {"grad"}, vjp=vjp)
    assert judge(mine, CLAUSES[label]).outcome == "fail"


def test_compiled_mutants_are_told_apart() -> None:
    """Each is right where its bug does not show."""
    pytest.importorskip("torch")
    for fn, label in ((compiled_for_five_keys, "IA-T-01"), (compiled_for_one_scale, "IA-T-02")):
        assert judge(implementation(fn, TORCH), CLAUSES[label]).outcome == "pass"


def test_a_thread_that_is_left_is_seen() -> None:
    end = threading.Event()
    leak = after(lambda: threading.Thread(target=end.wait, name="worker", daemon=True).start())
    try:
        verdict = judge(implementation(leak, NUMPY), CLAUSES["IA-D-08"], shrink=False)
    finally:
        end.set()
    assert verdict.outcome == "fail" and "threads still run: worker" in verdict.reason


def test_a_pool_that_is_kept_is_let_through() -> None:
    """Threads that the first call makes, and later calls use again."""
    end, made = threading.Event(), []

    def pool() -> None:
        if not made:
            made.append(threading.Thread(target=end.wait, daemon=True))
            made[0].start()

    try:
        assert judge(implementation(after(pool), NUMPY), CLAUSES["IA-D-08"]).outcome == "pass"
    finally:
        end.set()


@pytest.mark.skipif(not os.path.exists(f"/proc/self/task/{os.getpid()}/children"), reason="no list of children")
def test_a_process_that_is_left_is_seen() -> None:
    children: list[subprocess.Popen[bytes]] = []
    leak = after(lambda: children.append(subprocess.Popen(["sleep", "60"])))
    try:
        verdict = judge(implementation(leak, NUMPY), CLAUSES["IA-D-08"], shrink=False)
    finally:
        for child in children:
            child.kill()
            child.wait()
    assert verdict.outcome == "fail" and "processes are left" in verdict.reason


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_does_not_go_on_with_the_suite() -> None:
    children: list[int] = []

    def fork() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other tests have left threads of BLAS
            pid = os.fork()
        if pid:
            children.append(pid)

    verdict = judge(implementation(after(fork), NUMPY), CLAUSES["IA-D-08"], shrink=False)
    for pid in children:
        os.kill(pid, signal.SIGKILL)  # a zombie by now: the child ended itself
        assert os.waitpid(pid, 0)[1] == 0
    assert verdict.outcome == "fail"


def test_rows_by_themselves_are_batch_invariant() -> None:
    verdict = judge(implementation(by_rows, NUMPY), CLAUSES["IA-D-04"])
    assert verdict.outcome == "pass" and verdict.margin is not None, verdict.lines()


MEMORY = BASIC - {"lse"} | {"linear_memory", "grad"}


def flash(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    import torch

    return torch.nn.functional.scaled_dot_product_attention(query, key, value, **rest)


@pytest.mark.parametrize("label", ["IA-R-01", "IA-R-02"])
def test_memory_of_a_whole_matrix_is_seen(label: str) -> None:
    def vjp(do: Any, *qkv: Any, **rest: Any) -> Any:
        return indirect_attention_vjp(*qkv, do, **rest)[:3]

    whole = Implementation(indirect_attention, "whole", dtypes=("float32",), supports=MEMORY, vjp=vjp)
    verdict = judge(whole, CLAUSES[label])
    assert verdict.outcome == "fail" and "one score matrix grows by 108" in verdict.reason, verdict


def test_memory_of_tiles_is_let_through() -> None:
    tiled = Implementation(fast_attention, "tiled", dtypes=("float32",), supports=MEMORY | {"position_bias"})
    assert judge(tiled, CLAUSES["IA-R-01"]).outcome == "pass"
    pytest.importorskip("torch")
    fused = Implementation(flash, "flash", library="torch", dtypes=("float32",), supports=MEMORY)
    verdicts = [judge(fused, CLAUSES[label]) for label in ("IA-R-01", "IA-R-02")]
    assert [verdict.outcome for verdict in verdicts] == ["pass", "pass"], verdicts


def test_memory_that_nobody_tells_is_not_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr("ia_core.conformance._resources._reset_peak", lambda: False)
    monkeypatch.setattr("ia_core.conformance._resources.long_case", _short_case)
    fused = Implementation(flash, "flash", library="torch", dtypes=("float32",), supports=MEMORY)
    verdict = judge(fused, CLAUSES["IA-R-01"])
    assert verdict.outcome == "not supported" and "at its peak" in verdict.reason
    plain = Implementation(indirect_attention, "plain", supports=MEMORY)
    assert judge(plain, CLAUSES["IA-R-01"]).outcome == "pass"  # as NumPy traces it: too short to show


def _short_case(implementation: Implementation, factor: int, bias: str) -> Any:
    from ia_core.conformance import Case

    return Case(*(np.ones((1, 1, 64 * factor, 4), implementation.dtypes[0]) for _ in range(3)))


def test_without_automatic_differentiation_it_is_not_supported() -> None:
    closed = references()["reference-numpy"]()
    closed = dataclasses.replace(closed, supports=closed.claims | {"parameter_grad", "lse_grad", "double_grad"})
    for label in ("IA-G-07", "IA-G-10", "IA-G-12", "IA-G-14"):
        verdict = judge(closed, CLAUSES[label])
        assert verdict.outcome == "not supported"
        assert verdict.reason == "numpy has no automatic differentiation"


# Seed 0, without the further claims, is in tests/test_reference.py; twenty seeds in docs/results/controls.json.
@pytest.mark.parametrize(
    ("library", "seed"), [("numpy", 1), ("torch", 1), pytest.param("jax", 0, marks=pytest.mark.slow)]
)
def test_the_reference_is_acquitted(library: str, seed: int) -> None:
    _acquit(library, seed, "quick", MINE)


@pytest.mark.slow
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_the_reference_is_acquitted_in_full(library: str) -> None:
    _acquit(library, 7, "full", [label for label in MINE if label[3] in "GD"])


def _acquit(library: str, seed: int, profile: str, labels: list[str]) -> None:
    pytest.importorskip(library)
    mine = references()[f"reference-{library}"]()
    more = TRANSFORMED - {"wide_bias"} if library != NUMPY else set()
    mine = dataclasses.replace(mine, supports=mine.claims | more)
    passed = set()
    for label in labels:
        for dtype in dtypes_of(mine, CLAUSES[label], profile):
            verdict = judge(mine, CLAUSES[label], profile=profile, seed=seed, dtype=dtype)
            assert verdict.outcome in ("pass", "not supported"), verdict.lines()
            passed |= {label} if verdict.outcome == "pass" else set()
    # The rest is claimed by nobody here, or no question for the library (strides in JAX).
    asked = {label for label in labels if CLAUSES[label].unsupported(mine) is None}
    assert passed == asked


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits the maps of a process")
def test_room_is_made_before_xla_runs_out_of_memory_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some thousand compilations, as `full` needs in four dtypes, would otherwise end the process."""
    jax = pytest.importorskip("jax")
    cleared: list[int] = []
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(1))
    for maps, library, times in ((10**9, "jax", 0), (0, "numpy", 0), (0, "jax", 1)):
        monkeypatch.setattr(_libraries, "MAPS", maps)
        judge(references()[f"reference-{library}"](), CLAUSES["IA-F-01"])
        assert len(cleared) == times


def test_a_slow_implementation_is_tried_on_fewer_cases() -> None:
    slow = dataclasses.replace(references()["reference-numpy"](), most_cases=2)
    assert judge(slow, CLAUSES["IA-F-01"], profile="full").examples == 2
    with pytest.raises(ValueError, match=r"`most_cases` must be at least 1; got 0 \[IA-X-21\]"):
        dataclasses.replace(slow, most_cases=0)
