"""The Pallas kernels of JAX on a GPU: whether they are right, and what a position bias costs beside JAX's attention.

    python benchmarks/bench_gpu_jax.py --smoke [--only TEXT] [--seconds 120]
    python benchmarks/bench_gpu_jax.py [--only TEXT] [--seconds 120] [--rounds 9] [--out FILE]

``--smoke`` compiles variants of the kernels and compares output, lse and all gradients with the specification in
float64 on the CPU: a line for each, the errors as parts of the largest number of a result. It also runs where there is
no GPU, in Pallas's interpreter. The sizes of the timing are those of ``bench_gpu.py``: 16 heads of 64, M = N,
real-valued positions, a network of 64 or 512 hidden units. Contenders, each compiled as one function with its
gradients:

========  ==============================================================================================
plain     ``jax.nn.dot_product_attention`` without a bias in cuDNN's implementation: the yardstick
xla       the same in XLA's
matrix    cuDNN's with the bias as a matrix, which was computed before, where it fits
pallas    ``jax-pallas``
========  ==============================================================================================

A time is that of several calls that are queued and waited for together, by the number of calls. What is finished is
written to FILE when ``--seconds`` are over, or on Ctrl-C.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
from _machine import environment, interleaved
from attention_calls import Setting

import ia_core
from ia_core import LinearOffset, OffsetMLP, OffsetTable, PositionBias
from ia_core.backends import indirect_attention, use_backend
from ia_core.conformance._files import write_whole

RESULTS = Path(__file__).resolve().parents[1] / "docs/results/attention_gpu_jax.json"
HEADS, WIDTH = 16, 64
QUEUED = 5
# Errors of sums of some hundreds of rounded terms, as parts of the largest result: far above what rounding does, far
# below what a wrong tile does.
LIMITS = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 5e-2}


class Variant(NamedTuple):
    """What decides which code is compiled."""

    dtype: str = "bfloat16"
    bias: str = "mlp"
    mask: str = ""
    M: int = 200
    N: int = 333
    D: int = 64
    Dv: int = 64
    H: int = 4
    Hk: int = 4
    B: int = 2
    hidden: int = 24

    @property
    def name(self) -> str:
        own = {key: value for key, value in self._asdict().items() if value != self._field_defaults[key]}
        return f"{self.dtype} {self.bias} {self.mask or 'unmasked'} {own}"


def variants() -> Iterator[Variant]:
    """The benchmark's own first."""
    yield Variant(M=512, N=512)
    for dtype in LIMITS:
        yield Variant(dtype)
    yield Variant(hidden=512, M=384, N=384)
    for bias, dtype in itertools.product(("none", "table", "linear", "dense", "rows"), ("bfloat16", "float32")):
        yield Variant(dtype, bias)
    for mask in ("scores", "padding", "heads"):
        yield Variant(mask=mask)
        yield Variant("float32", mask=mask, Hk=2)
    yield Variant(D=128, Dv=128)
    yield Variant(D=40, Dv=72, Hk=2)
    yield Variant(D=256, Dv=256, M=100, N=130)
    yield Variant("float32", D=256, Dv=256, M=100, N=130)
    yield Variant("float16", M=5, N=7)


def arrays_of(v: Variant) -> tuple[list[Any], list[Any], Any]:
    """Query, key, value; what the bias is made from and positions, in float32 numbers; a mask."""
    random = np.random.default_rng(0)
    shapes = ((v.B, v.H, v.M, v.D), (v.B, v.Hk, v.N, v.D), (v.B, v.Hk, v.N, v.Dv))
    rows = [random.normal(size=shape) for shape in shapes]
    places = [np.sort(random.uniform(0, v.N, size=(v.B, v.M))), np.arange(float(v.N))]
    w1 = random.normal(size=v.hidden)
    own = {
        "none": [],
        "mlp": [w1, -w1 * random.uniform(-v.N, v.N, size=v.hidden), random.normal(size=(v.hidden, v.H)) / v.N],
        "table": [random.normal(size=(v.H, 41))],
        "linear": [random.uniform(0, 0.1, size=v.H)],
        "dense": [random.normal(size=(v.H, v.M, v.N))],
        "rows": [random.normal(size=(v.B, 1, 1, v.N))],
    }[v.bias]
    if v.bias == "mlp":
        own.append(np.zeros(v.H))
    leaves = own if v.bias in ("none", "dense", "rows") else [*own, *places]
    mask = None
    if v.mask:
        shape = {"scores": (v.M, v.N), "padding": (v.B, 1, 1, v.N), "heads": (v.B, v.H, v.M, v.N)}[v.mask]
        mask = random.random(size=shape) < 0.7
        mask[..., 0, :] &= v.mask == "padding"
    # What halves cannot hold must not be in what both compute from.
    return [np.asarray(jnp.asarray(a, v.dtype), "float32") for a in rows], [np.float32(a) for a in leaves], mask


def bias_of(v: Variant, leaves: list[Any]) -> Any:
    kinds: dict[str, Any] = {"mlp": OffsetMLP, "table": OffsetTable, "linear": LinearOffset}
    if v.bias in kinds:
        return PositionBias(kinds[v.bias](*leaves[:-2]), *leaves[-2:])
    return leaves[0] if leaves else None


def results(function: Callable[..., Any], v: Variant, rows: list[Any], leaves: list[Any], mask: Any) -> Any:
    """Output, lse and all gradients."""

    def loss(rows: Any, leaves: Any) -> Any:
        output, lse = function(*rows, bias=bias_of(v, leaves), mask=mask, return_lse=True)
        weights = jnp.linspace(-1, 1, output.size, dtype=lse.dtype).reshape(output.shape)
        whole = jnp.where(jnp.isinf(lse), 0.0, lse)
        return jnp.sum(output.astype(lse.dtype) * weights) + jnp.sum(jnp.sin(whole)), (output, lse)

    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(rows, leaves)


def ours(*arrays: Any, **keywords: Any) -> Any:
    with use_backend("jax-pallas"):
        return indirect_attention(*arrays, **keywords)


def judge(v: Variant) -> str:
    """The line for a variant."""
    rows, leaves, mask = arrays_of(v)
    given = [jnp.asarray(row, v.dtype) for row in rows]
    began = time.perf_counter()
    got = jax.block_until_ready(results(ours, v, given, [jnp.asarray(leaf) for leaf in leaves], mask))
    took = time.perf_counter() - began
    again = results(ours, v, given, [jnp.asarray(leaf) for leaf in leaves], mask)
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        wide = ([jnp.asarray(array, "float64") for array in each] for each in (rows, leaves))
        want = results(ia_core.indirect_attention, v, *wide, mask)
    errors, bad = [], []
    for number, leaves_of in enumerate(zip(*map(jax.tree.leaves, (got, again, want)), strict=True)):
        one, repeated, true = (np.asarray(array, "float64") for array in leaves_of)
        finite = np.isfinite(true)
        size = max(float(np.max(np.abs(true[finite]), initial=0.0)), 1e-3)
        error = float(np.max(np.abs(one - true)[finite], initial=0.0)) / size
        errors.append(f"{error:.1e}")
        if not error <= LIMITS[v.dtype] or not np.array_equal(one[~finite], true[~finite]):
            bad.append(str(number))
        if not np.array_equal(one, repeated):
            bad.append(f"{number} differs in the second call")
    verdict = "ok  " if not bad else f"BAD ({', '.join(bad)})"
    return f"{verdict} {took:5.1f} s  {v.name}: {', '.join(errors)}"


def smoke(only: str, until: float) -> int:
    """A line for every variant, whatever happens; 1 if one failed or was left."""
    failed = left = 0
    for variant in [each for each in variants() if only in each.name]:
        if time.monotonic() > until:
            left += 1
            print(f"left {variant.name}", flush=True)
            continue
        try:
            line = judge(variant)
        except Exception as error:
            line = f"FAIL {variant.name}: {type(error).__name__}: {' '.join(str(error).split())[-600:]}"
        failed += not line.startswith("ok")
        print(line, flush=True)
    print(f"{failed} failed, {left} left" if failed or left else "all ok")
    return min(failed + left, 1)


def contenders(dtype: str, n: int, hidden: int, gradients: bool) -> dict[str, Callable[[], Any]]:
    """Callables; each computes its result anew and waits for several of them."""
    setting = Setting(n, HEADS, WIDTH, hidden, "real", gradients)
    arrays = setting.arrays()
    q, k, v, cotangent = (jnp.asarray(array, dtype) for array in arrays[:4])
    leaves = [jnp.asarray(array) for array in arrays[4:]]

    def call(function: Any, *given: Any) -> Callable[[], Any]:
        whole = jax.jit(function)
        if gradients:
            numbers = tuple(range(len(given)))
            whole = jax.jit(jax.grad(lambda *g: jnp.vdot(function(*g), cotangent).astype("float32"), numbers))

        def run() -> Any:
            return jax.block_until_ready([whole(*given) for _ in range(QUEUED)])

        return run

    def theirs(implementation: str) -> Callable[..., Any]:
        def function(q: Any, k: Any, v: Any, bias: Any = None) -> Any:
            q, k, v = (array.swapaxes(1, 2) for array in (q, k, v))
            found = jax.nn.dot_product_attention(q, k, v, bias, implementation=implementation)
            return found.swapaxes(1, 2)

        return function

    def pallas(q: Any, k: Any, v: Any, *leaves: Any) -> Any:
        return ours(q, k, v, bias=PositionBias(OffsetMLP(*leaves[:4]), leaves[4], jnp.asarray(arrays[-1])))

    found = {"plain": call(theirs("cudnn"), q, k, v), "pallas": call(pallas, q, k, v, *leaves[:5])}
    found["xla"] = call(theirs("xla"), q, k, v)
    if n <= 2048:
        matrix = jnp.asarray(setting.matrix(), dtype)[None]
        found["matrix"] = call(theirs("cudnn"), q, k, v, matrix)
    return found


def compare(dtype: str, n: int, hidden: int, gradients: bool, rounds: int) -> dict[str, Any]:
    """Times of the contenders that can, and their ratio to the first one that can."""
    found: dict[str, Any] = {}
    calls = {}
    for name, call in contenders(dtype, n, hidden, gradients).items():
        try:
            call()
            calls[name] = call
        except Exception as error:
            found[name] = {"left_out": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    times = {name: [second / QUEUED for second in each] for name, each in interleaved(calls, rounds).items()}
    first = "plain" if "plain" in times else "xla"
    for name, each in times.items():
        middle = statistics.median(each)
        operations = 4 * n**2 * HEADS * WIDTH * (3.5 if gradients else 1)
        ratios = [mine / other for mine, other in zip(each, times.get(first, each), strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        found[name] = {"milliseconds": [round(1e3 * second, 4) for second in each]}
        found[name] |= {"teraflops": round(operations / middle / 1e12, 1), "beside": first}
        found[name]["ratio"] = {
            "median": round(statistics.median(ratios), 3),
            "quartiles": [round(low, 3), round(high, 3)],
        }
        print(f"  {name}: {1e3 * middle:.3f} ms, {found[name]['ratio']} of {first}", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--only", default="", help="variants or comparisons whose name has this in it")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.rounds < 7:
        parser.error("fewer than 7 rounds say nothing about the spread")
    until = time.monotonic() + options.seconds
    device = jax.devices()[0]
    print(f"on {device.device_kind}, JAX {jax.__version__}, ia_core {ia_core.__version__}", flush=True)
    if options.smoke:
        return smoke(options.only, until)
    facts = environment(["jax", "jaxlib"]) | {"gpu": device.device_kind, "date": datetime.date.today().isoformat()}
    record: dict[str, Any] = {"environment": facts, "queued": QUEUED, "comparisons": {}}
    try:
        for dtype, n, hidden in itertools.product(("bfloat16", "float16", "float32"), (8192, 2048), (64, 512)):
            for gradients in (False, True):
                name = f"{dtype}, {n}, {hidden} hidden, {'forward + backward' if gradients else 'forward'}"
                if options.only in name and time.monotonic() < until:
                    print(f"{name}:", flush=True)
                    record["comparisons"][name] = compare(dtype, n, hidden, gradients, options.rounds)
    except KeyboardInterrupt:
        print("stopped; what is finished is kept", file=sys.stderr)
    write_whole(options.out, json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
