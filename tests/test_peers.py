"""The kernels of others: a quick judgement of each that is installed, and what is declared in full and by itself.

What is not installed is skipped with its name; ``make peers`` installs and judges all of them.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from ia_core.conformance import CLAUSES, Clause, Implementation
from ia_core.conformance._recipe import Recipe
from ia_core.conformance._verdict import check_deviations, dtypes_of
from ia_core.conformance._worker import Worker
from ia_core.conformance.adapters import BUILTIN, KNOWN_BAD, find, installed

from . import peer_examples_more, peer_examples_optional
from .peer_examples import SHOWN

assert peer_examples_more and peer_examples_optional  # imported for the examples that they register

# By everything they are judged by the demo of .ci/run and by `make peers`, but for Keras on other backends than NumPy:
# a process has one.
FAMILIES = "FP"
EVERY = {"keras-torch", *KNOWN_BAD}
# Their processes are slow to compile (tinygrad interprets).
SLOW = {"jax-dpa": "F", "flax": "F", "tinygrad": "F", "keras-jax": "FSP"}
CHOSEN = "KERAS_BACKEND" in os.environ  # by the person, or by test_examples_of_keras_on_another_backend
HERE = installed(every_backend=True)
CONVICTED = {"IA-E-17", "IA-E-18"}


def clauses_for(implementation: Implementation) -> list[Clause]:
    """Some families and what is declared; of what is known to be wrong all clauses."""
    families = SLOW.get(implementation.name, FAMILIES)
    declared = {label.partition("[")[0] for label in implementation.deviations}
    every = implementation.name in EVERY
    return [c for c in CLAUSES.values() if every or c.family in families or c.label in declared]


def judged(name: str) -> dict[tuple[str, str], str]:
    """What is bad about an implementation in quick, and in every dtype of a clause where a deviation is declared."""
    bad: dict[tuple[str, str], str] = {}
    passed = 0
    with Worker(Recipe(name)) as worker:  # Keras has one backend in a process, and MLX ends one
        check_deviations(worker.implementation)
        for clause in clauses_for(worker.implementation):
            # What is declared must show in every dtype, in the cases that full has for it.
            declared = any(label.startswith(clause.label) for label in worker.implementation.deviations)
            profile = "full" if declared else "quick"
            for dtype in dtypes_of(worker.implementation, clause, profile):
                verdict = worker.judge(clause.label, dtype, profile)
                passed += verdict.outcome == "pass"
                if verdict.bad:
                    bad[clause.label, dtype] = "\n".join(verdict.lines())
    assert passed >= 10
    return bad


# Keras on JAX compiles as jax-dpa does, for every shape.
RARELY = {"keras-jax": [pytest.mark.slow]}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=RARELY.get(name, ())) for name in BUILTIN if name not in KNOWN_BAD]
)
def test_only_declared_deviations_and_all_of_them(name: str) -> None:
    if name not in HERE:
        pytest.skip(f"{name} is not installed, or Keras is held to another backend")
    bad = judged(name)
    assert not bad, "\n\n".join(bad.values())


@pytest.mark.parametrize("name", sorted(KNOWN_BAD))
def test_what_is_known_to_be_wrong_is_found(name: str) -> None:
    try:
        find(name)
    except ValueError as error:
        pytest.skip(str(error))
    bad = judged(name)
    assert {label for label, _ in bad} == CONVICTED, "\n\n".join(bad.values())


# ---------------------------------------------------------------------------------------------------- examples

IN_THIS_PROCESS = {*installed(), *(KNOWN_BAD if importlib.util.find_spec("memory_efficient_attention") else ())}


@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch says which kernels decline, and what is slow
@pytest.mark.parametrize(("name", "label"), sorted(SHOWN))
def test_deviation_by_itself(name: str, label: str) -> None:
    if name not in IN_THIS_PROCESS:
        pytest.skip(f"{name} is not installed, or Keras is on another backend")
    assert SHOWN[name, label](name, label)


@pytest.mark.skipif(CHOSEN, reason="Keras is held to one backend")
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_examples_of_keras_on_another_backend(backend: str) -> None:
    """Those of that backend, in a process of its own."""
    if not all(map(importlib.util.find_spec, ("keras", backend))):
        pytest.skip(f"Keras or {backend} is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    environment = os.environ | {"KERAS_BACKEND": backend}
    command += ["-k", f"keras-{backend} and by_itself", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:]


def test_every_declared_deviation_has_an_example_and_the_other_way_round() -> None:
    declared = {(name, label) for name in installed() for label in find(name).deviations}
    assert {key for key in SHOWN if key[0] in installed()} == declared
    assert {name for name, _ in SHOWN} <= set(BUILTIN)


def test_tinygrad_has_no_float16() -> None:
    """Why it is not claimed: right for 15 keys, an error for 16 and for 32."""
    tinygrad = pytest.importorskip("tinygrad")
    helpers = pytest.importorskip("tinygrad.helpers")
    with helpers.Context(DEV="PYTHON"):
        rows = [tinygrad.Tensor.ones(1, 1, n, 1, dtype="half").contiguous() for n in (1, 15, 16, 32)]
        assert rows[0].scaled_dot_product_attention(rows[1], rows[1]).numpy() == 1
        for keys in rows[2:]:
            with pytest.raises(RuntimeError, match="UOp verification failed"):
                rows[0].scaled_dot_product_attention(keys, keys).numpy()
