"""The known bugs of the suite, judged by the criteria that other projects judge attention by: who catches how many.

    python -m benchmarks.peer_criteria [docs/generated/peer_criteria.md]

Three criteria, each given at least the inputs that its own project draws:

- ``1e-2``: allclose with rtol = atol = 1e-2 to a float64 computation, on standard normal inputs.
- ``twice the error``: FlashAttention's. The largest error is at most twice that of the framework's own computation in
  the same dtype (scores, weights and sums in it, operations in another order), plus what x + 0.3 - 0.3 leaves.
- ``ONNX``: the node test cases of the operator Attention that ``onnx`` carries, those which the signature can say
  (4-D, or 3-D reshaped; a mask, a bias, a causal flag, grouped heads, other widths, a scale), with their own
  tolerances.

The first two see outputs, the lse and gradients wherever a bug claims them, every bias function, and two dtypes:
float32 and float16 where it takes them.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import platform
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ia_core import BoxMLP, EdgeMLP, Grid, LinearOffset, OffsetMLP, OffsetTable, PositionBias
from ia_core.conformance import Case, Failure, Implementation
from ia_core.conformance import _wide as truth
from ia_core.conformance._calls import differentiable, gradients
from ia_core.conformance._libraries import NotSupported, has_device, numpy_dtype
from ia_core.conformance._self_test import self_test
from ia_core.conformance.mutants import FAMILIES, MUTANTS, Attention, Backward, Mutant
from ia_core.conformance.mutants._mutant import DTYPES, FORWARD

Quantity = tuple[np.ndarray, np.ndarray, np.ndarray]  # got, wanted, low-precision reference


@functools.cache
def battery(dtype: str, claims: frozenset[str]) -> list[Case]:
    return list(_battery(dtype, claims & {"value_width", "grouped", "scale", "mask", "bias", "position_bias"}))


def _battery(dtype: str, claims: frozenset[str]) -> Iterator[Case]:
    """Standard normal inputs in the sizes that kernels are tested with."""
    rng = np.random.default_rng(0)
    kind, work = numpy_dtype(dtype), np.dtype("float64" if dtype == "float64" else "float32")

    def normal(*shape: int, dtype: Any = kind) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    def case(H: int = 4, Hk: int = 4, M: int = 64, N: int = 64, D: int = 32, Dv: int = 32, **rest: Any) -> Case:
        return Case(normal(2, H, M, D), normal(2, Hk, N, D), normal(2, Hk, N, Dv), **rest)

    yield case()
    yield case(M=17, N=113)
    yield case(M=113, N=203)
    if "value_width" in claims:
        yield case(Dv=16)
    if "grouped" in claims:
        yield case(H=6, Hk=2)
    if "scale" in claims:
        yield case(scale=0.3)
    if "mask" in claims:
        yield case(mask=np.tril(np.ones((64, 64), bool)))
        yield case(M=64, N=96, mask=np.tril(np.ones((64, 96), bool), 32))
        mask = rng.random((2, 4, 64, 64)) < 0.7
        mask[..., 0] = True
        yield case(mask=mask)
    if "bias" in claims:
        for shape in ((2, 4, 64, 64), (4, 64, 64), (1, 64, 64), (64,)):
            yield case(bias=normal(*shape))
    if "position_bias" in claims:
        p, v = np.arange(64), np.arange(64)

        def parts(*sizes: tuple[int, ...]) -> list[np.ndarray]:
            return [normal(*size, dtype=work) for size in sizes]

        edges = [EdgeMLP(*parts((2, 8), (8,), (8, 4), (4,))) for _ in range(2)]
        boxes = (8 * rng.random((64, 4))).astype(work)
        yield case(bias=PositionBias(OffsetMLP(*parts((8,), (8,), (8, 4), (4,))), p, v))
        yield case(bias=PositionBias(OffsetTable(*parts((4, 17))), p, v))
        yield case(bias=PositionBias(LinearOffset(abs(parts((4,))[0])), p, v))
        yield case(bias=PositionBias(BoxMLP(*edges), boxes, Grid(np.arange(8, dtype=work), np.arange(8, dtype=work))))


def quantities(implementation: Implementation, case: Case) -> Iterator[Quantity]:
    """What can be compared: the output, the lse, gradients."""
    wanted = references(case)
    result = implementation.run(case, return_lse="lse" in implementation.claims)
    yield result.output, *wanted["output"]
    if result.lse is not None:
        yield result.lse, *wanted["lse"]
    if "grad" in implementation.claims and not isinstance(case.bias, PositionBias):
        wanted = gradient_references(case)
        found = gradients(implementation, case, cotangent(case))
        for name in differentiable(implementation, case):
            yield found[name], *wanted[name]


@functools.cache
def references(case: Case) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """In float64, and in the dtype of the case."""
    exact = truth.forward(**case.arguments)
    low = _framework(case)(case.query, case.key, case.value, **_keywords(case), return_lse=True)
    pairs = zip(("output", "lse"), (exact.output, exact.lse), low, strict=True)
    return {name: (one.high, other.astype(np.float64)) for name, one, other in pairs}


@functools.cache
def gradient_references(case: Case) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The same, of gradients."""
    arguments = (case.query, case.key, case.value)
    exact = truth.gradient(*arguments, cotangent(case), case.bias, case.mask, case.scale)
    backward = type("Low", (Backward,), {"forward": _framework(case)})()
    low = backward(cotangent(case), *arguments, **_keywords(case))
    names = ("query", "key", "value", "bias")
    return {n: (getattr(exact, n).high, g.astype(np.float64)) for n, g in zip(names, low, strict=False)}


def cotangent(case: Case) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(case.output_shape).astype(case.query.dtype)


def _framework(case: Case) -> Attention:
    """Another order of operations, everything in the dtype of the inputs."""

    class Low(Attention):
        def work(self, call: Any) -> Any:
            return case.query.dtype

        def products(self, call: Any, q: Any, k: Any) -> Any:
            # The scale on the keys, as FlashAttention's reference has it with reorder_ops.
            return Attention.products(self, call, q, (k * k.dtype.type(self.factor(call))).astype(k.dtype))

        def add(self, call: Any, factor: Any, products: Any, bias: Any) -> Any:
            return products if bias is None else products + bias

    return Low()


def _keywords(case: Case) -> dict[str, Any]:
    return {name: getattr(case, name) for name in ("bias", "mask", "scale")}


def is_close(got: np.ndarray, wanted: np.ndarray, low: np.ndarray, dtype: str) -> bool:
    return bool(np.allclose(got, wanted, rtol=1e-2, atol=1e-2, equal_nan=True))


def is_twice_as_good(got: np.ndarray, wanted: np.ndarray, low: np.ndarray, dtype: str) -> bool:
    rounded = wanted.astype(numpy_dtype(dtype))
    ulps = 2 * np.max(np.abs((rounded + rounded.dtype.type(0.3) - rounded.dtype.type(0.3) - rounded).astype(float)))
    return bool(np.max(np.abs(got - wanted)) <= 2 * np.max(np.abs(low - wanted)) + ulps)


def caught_by_battery(mutant: Mutant, good: Callable[..., bool]) -> bool:
    implementation = mutant.implementation()
    for dtype in [d for d in ("float32", "float16", "bfloat16", "float64") if d in mutant.dtypes][:2]:
        for case in battery(dtype, implementation.claims):
            try:
                with np.errstate(all="ignore"):
                    if not all(good(*one, dtype) for one in quantities(implementation, case)):
                        return True
            except Failure:
                return True
            except NotSupported:
                continue
    return False


class NodeCase:
    """One of ONNX's test cases as a call."""

    def __init__(self, name: str, case: Case, wanted: np.ndarray, rtol: float, atol: float, three_d: bool) -> None:
        self.name, self.case, self.wanted, self.rtol, self.atol, self.three_d = name, case, wanted, rtol, atol, three_d

    def passes(self, implementation: Implementation) -> bool:
        if self.case.dtype not in implementation.dtypes:
            return True
        try:
            with np.errstate(all="ignore"):
                got = implementation.run(self.case).output
        except Failure:
            return False
        if self.three_d:
            got = np.swapaxes(got, -3, -2).reshape(self.wanted.shape)
        return bool(np.allclose(got, self.wanted.astype(np.float64), rtol=self.rtol, atol=self.atol, equal_nan=True))


def node_cases() -> list[NodeCase]:
    from onnx.backend.test.loader import load_model_tests

    found = []
    for test in load_model_tests(kind="node"):
        node = test.model.graph.node[0] if len(test.model.graph.node) == 1 else None
        if node is None or node.op_type != "Attention" or len([o for o in node.output if o]) != 1:
            continue
        attributes = {a.name: a.i or a.f for a in node.attribute}
        if set(attributes) - {"is_causal", "scale", "q_num_heads", "kv_num_heads"} or len(node.input) > 4:
            continue
        inputs, outputs = ([np.asarray(x) for x in one] for one in test.data_sets[0])
        if inputs[0].dtype.name not in DTYPES or inputs[0].ndim not in (3, 4):
            continue
        found.append(
            NodeCase(test.name, _call(inputs, attributes), outputs[0], test.rtol, test.atol, inputs[0].ndim == 3)
        )
    return found


def _call(inputs: Sequence[np.ndarray], attributes: dict[str, Any]) -> Case:
    q, k, v = inputs[:3]
    if q.ndim == 3:
        heads = (attributes["q_num_heads"], attributes["kv_num_heads"], attributes["kv_num_heads"])
        q, k, v = (np.swapaxes(a.reshape(*a.shape[:2], H, -1), 1, 2) for a, H in zip((q, k, v), heads, strict=True))
    extra = inputs[3] if len(inputs) > 3 else None
    bias, mask = (extra, None) if extra is not None and extra.dtype != bool else (None, extra)
    if attributes.get("is_causal"):
        causal = np.tril(np.ones((q.shape[-2], k.shape[-2]), bool))
        mask = causal if mask is None else mask & causal
    return Case(q, k, v, bias=bias, mask=mask, scale=attributes.get("scale"))


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Some bugs print."""
    sys.stdout.flush()
    saved, sink = [os.dup(fd) for fd in (1, 2)], os.open(os.devnull, os.O_WRONLY)
    try:
        for fd in (1, 2):
            os.dup2(sink, fd)
        yield
    finally:
        sys.stdout.flush()
        for fd, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, fd)
        for fd in (*saved, sink):
            os.close(fd)


def main(arguments: Sequence[str]) -> int:
    warnings.simplefilter("ignore")
    nodes = node_cases()
    honest = Mutant("honest", "mask", "", Attention(), (), Backward(), FORWARD | {"grad", "bias_grad"})
    falsely = [node.name for node in nodes if not node.passes(honest.implementation())]
    nodes = [node for node in nodes if node.name not in falsely]
    mutants = [m for m in MUTANTS.values() if has_device(m.library)]
    alarms = [
        f"1e-2: {'yes' if caught_by_battery(honest, is_close) else 'no'}",
        f"twice the error: {'yes' if caught_by_battery(honest, is_twice_as_good) else 'no'}",
        f"ONNX: {', '.join(falsely) or 'no'}",
    ]
    with silence():
        caught = {
            "rtol = atol = 1e-2": {m.name for m in mutants if caught_by_battery(m, is_close)},
            "at most twice the framework's error": {m.name for m in mutants if caught_by_battery(m, is_twice_as_good)},
            f"ONNX, {len(nodes)} node cases": {
                m.name for m in mutants if not all(n.passes(m.implementation()) for n in nodes)
            },
        }
        for profile in ("quick", "full"):
            kills = self_test(mode="named", profile=profile, workers=int(os.environ.get("WORKERS", "2")))
            caught[f"this suite, {profile}, seed 0"] = {m.name for m in mutants} - set(kills.survivors(0))
    text = table(caught, mutants, alarms)
    if arguments:
        Path(arguments[0]).write_text(text, encoding="utf-8")
    else:
        print(text)
    return 0


def table(caught: dict[str, set[str]], mutants: Sequence[Mutant], alarms: Sequence[str]) -> str:
    import onnx

    sizes = Counter(m.family for m in mutants)
    versions = f"NumPy {np.__version__}, ml_dtypes {ml_dtypes.__version__}, onnx {onnx.__version__}"
    lines = [
        f"Measured {datetime.date.today()}, Python {platform.python_version()}, {versions}; "
        "`python -m benchmarks.peer_criteria`.",
        "",
        f"Does the code that the bugs were made from pass? False alarms: {'; '.join(alarms)}.",
        "",
        "| bugs | all | " + " | ".join(sizes) + " |",
        "| --- |" + " --- |" * (len(sizes) + 1),
        f"| number | {len(mutants)} | " + " | ".join(str(sizes[f]) for f in sizes) + " |",
    ]
    for criterion, names in caught.items():
        by_family = Counter(MUTANTS[name].family for name in names)
        lines.append(f"| {criterion} | {len(names)} | " + " | ".join(str(by_family[f]) for f in sizes) + " |")
    lines += ["", "Families: " + "; ".join(f"{f}: {FAMILIES[f]}" for f in sizes) + ".", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
