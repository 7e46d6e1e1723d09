"""The specification on every array library: what runs, compiles and differentiates, as a list of checks.

``python -m tests.library_checks`` runs them all and writes docs/generated/libraries.md; tests/test_libraries.py
runs them one by one and compares the committed table with this list.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ia_core import (
    BoxMLP,
    EdgeMLP,
    Grid,
    LinearOffset,
    OffsetMLP,
    OffsetTable,
    PositionBias,
    indirect_attention,
)
from ia_core.conformance import Case
from ia_core.conformance import _oracle as oracle
from ia_core.conformance._clause import check_elements, truth_of
from ia_core.conformance._tolerance import gradient_bound

TABLE = Path(__file__).parents[1] / "docs" / "generated" / "libraries.md"
NAMES = ("query", "key", "value", "bias")


def example(kind: str, dtype: str = "float64") -> Case:
    """Grouped heads, Dv != D, a broadcast bias, an empty row, poison behind the mask; or a position bias."""
    rng = np.random.default_rng(7)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    case = Case(normal(2, 4, 3, 5), normal(2, 2, 6, 5), normal(2, 2, 6, 4), seed=7)
    if kind == "box":
        x, y = (EdgeMLP(normal(2, 5), normal(5), normal(5, 4), normal(4)) for _ in range(2))
        grid = Grid(np.arange(3, dtype=dtype), np.arange(2, dtype=dtype))
        return case.but(bias=PositionBias(BoxMLP(x, y), normal(3, 4), grid))
    if kind in ("position", "table", "linear"):
        f = {
            "position": OffsetMLP(normal(5), normal(5), normal(5, 4), normal(4)),
            "table": OffsetTable(normal(4, 5)),
            "linear": LinearOffset(abs(normal(4))),
        }[kind]
        return case.but(bias=PositionBias(f, 6 * rng.random(3).astype(dtype), np.arange(6)))
    mask = rng.random((2, 1, 3, 6)) < 0.7
    mask[..., 1, :] = False
    mask[..., 4] = False
    if kind == "gradient":
        return case.but(bias=normal(4, 1, 6), mask=mask)
    key, value = case.key.copy(), case.value.copy()
    key[..., 4, :], value[..., 4, :] = np.nan, np.inf
    return case.but(key=key, value=value, bias=normal(4, 1, 6), mask=mask, scale=0.3)


def forward(convert: Callable[[Any], Any], back: Callable[[Any], Any], wrap: Callable[..., Any] = lambda f: f) -> None:
    """Output within the bound, for every kind of bias in float64, and for two in float32."""
    for kind in ("dense", "position", "table", "linear", "box"):
        for dtype in ("float64", "float32") if kind in ("dense", "position") else ("float64",):
            case = example(kind, dtype)
            given = {name: _convert(getattr(case, name), convert) for name in ("bias", "mask")}
            given = {name: array for name, array in given.items() if array is not None}

            def call(q: Any, k: Any, v: Any, given: Any, scale: float | None = case.scale) -> Any:
                return indirect_attention(q, k, v, scale=scale, **given)

            output = wrap(call)(*(convert(getattr(case, name)) for name in NAMES[:3]), given)
            truth, bound = truth_of(case)
            got = np.asarray(back(output))
            assert got.dtype == np.dtype(dtype)
            check_elements("output", got.astype(np.float64), truth.output, bound.output, case)


def gradient(differentiate: Callable[..., Any]) -> None:
    """Gradients of <cotangent, output> within the bound; ``differentiate(loss arrays..., cotangent)`` gives them."""
    case = example("gradient")
    do = np.random.default_rng(8).standard_normal(case.output_shape)
    exact = oracle.gradient(case.query, case.key, case.value, do, case.bias, case.mask)
    bounds = gradient_bound(case, truth_of(case)[0], exact, do)
    found = differentiate(*(getattr(case, name) for name in NAMES), case.mask, do)
    for name, got in zip(NAMES, found, strict=True):
        check_elements(name, np.asarray(got), getattr(exact, name), bounds[name], case)


def _convert(thing: Any, convert: Callable[[Any], Any]) -> Any:
    if isinstance(thing, tuple):
        return type(thing)(*(_convert(leaf, convert) for leaf in thing))
    return None if thing is None else convert(thing)


def numpy_runs() -> None:
    forward(lambda a: a, lambda a: a)


def strict_runs() -> None:
    xp = importlib.import_module("array_api_strict")
    with xp.ArrayAPIStrictFlags(boolean_indexing=False, data_dependent_shapes=False, enabled_extensions=()):
        forward(xp.asarray, np.from_dlpack)


def dask_runs() -> None:
    da = importlib.import_module("dask.array")
    forward(lambda a: da.from_array(a, chunks=2), lambda a: a.compute())


def cubed_runs() -> None:
    cubed = importlib.import_module("cubed")
    forward(cubed.from_array, lambda a: a.compute())


def ndonnx_runs() -> None:
    ndx = importlib.import_module("ndonnx")
    forward(ndx.asarray, lambda a: a.unwrap_numpy())


def ndonnx_compiles() -> None:
    """Traced once into an ONNX model, which ONNX Runtime then runs on the arrays."""
    ndx, ort = importlib.import_module("ndonnx"), importlib.import_module("onnxruntime")
    for kind in ("dense", "position"):
        case = example(kind, "float32")
        flat = {name: getattr(case, name) for name in NAMES[:3]}
        if kind == "position":
            f, p, v = case.bias
            flat |= dict(zip(("w1", "b1", "w2", "b2", "p", "v"), (*f, p, v), strict=True))
        else:
            flat |= {"bias": case.bias, "mask": case.mask}
        symbols = {n: ndx.argument(shape=a.shape, dtype=ndx.asarray(a).dtype) for n, a in flat.items()}
        bias = (
            PositionBias(OffsetMLP(*(symbols[n] for n in ("w1", "b1", "w2", "b2"))), symbols["p"], symbols["v"])
            if kind == "position"
            else symbols["bias"]
        )
        inputs = [symbols[name] for name in NAMES[:3]]
        output = indirect_attention(*inputs, bias=bias, mask=symbols.get("mask"), scale=case.scale)
        model = ndx.build(symbols, {"output": output})
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        (got,) = session.run(["output"], flat)
        truth, bound = truth_of(case)
        check_elements("output", got.astype(np.float64), truth.output, bound.output, case)


def torch_runs() -> None:
    torch = importlib.import_module("torch")
    forward(torch.asarray, lambda a: a.numpy())


def torch_compiles() -> None:
    torch = importlib.import_module("torch")
    with _quiet():
        forward(torch.asarray, lambda a: a.numpy(), lambda f: torch.compile(f, fullgraph=True))


def torch_differentiates() -> None:
    torch = importlib.import_module("torch")

    def autograd(q: Any, k: Any, v: Any, b: Any, mask: Any, do: Any) -> Any:
        leaves = [torch.asarray(a).requires_grad_() for a in (q, k, v, b)]
        output = indirect_attention(*leaves[:3], bias=leaves[3], mask=torch.asarray(mask))
        return torch.autograd.grad(output, leaves, torch.asarray(do))

    gradient(autograd)


def jax_runs() -> None:
    jnp = _jax().numpy
    forward(jnp.asarray, np.asarray)


def jax_compiles() -> None:
    jax = _jax()
    forward(jax.numpy.asarray, np.asarray, jax.jit)


def jax_vmaps() -> None:
    jax = _jax()
    case = example("gradient")
    one = jax.vmap(lambda q, k, v, m: indirect_attention(q, k, v, bias=jax.numpy.asarray(case.bias), mask=m))
    got = one(*(jax.numpy.asarray(a) for a in (case.query, case.key, case.value, case.mask)))
    truth, bound = truth_of(case)
    check_elements("output", np.asarray(got), truth.output, bound.output, case)


def jax_differentiates() -> None:
    jax = _jax()

    def grad(q: Any, k: Any, v: Any, b: Any, mask: Any, do: Any) -> Any:
        def loss(q: Any, k: Any, v: Any, b: Any) -> Any:
            return jax.numpy.sum(do * indirect_attention(q, k, v, bias=b, mask=jax.numpy.asarray(mask)))

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(q, k, v, b)

    gradient(grad)


def cupy_runs() -> None:
    cupy = importlib.import_module("cupy")
    forward(cupy.asarray, cupy.asnumpy)


def _jax() -> Any:
    jax = importlib.import_module("jax")
    jax.config.update("jax_enable_x64", True)
    return jax


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Deprecations inside a compiler are its maintainers' business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Check(NamedTuple):
    """One cell of the table: ``column`` is runs, compiles or differentiates; ``how`` is what the cell says."""

    library: str
    column: str
    how: str
    run: Callable[[], None]
    needs: tuple[str, ...]


CHECKS = [
    Check("NumPy", "runs", "yes", numpy_runs, ("numpy",)),
    Check("PyTorch", "runs", "yes", torch_runs, ("torch",)),
    Check("PyTorch", "compiles", "`torch.compile(fullgraph=True)`", torch_compiles, ("torch",)),
    Check("PyTorch", "differentiates", "`torch.autograd`", torch_differentiates, ("torch",)),
    Check("JAX", "runs", "yes", jax_runs, ("jax",)),
    Check("JAX", "runs", "`jax.vmap`", jax_vmaps, ("jax",)),
    Check("JAX", "compiles", "`jax.jit`", jax_compiles, ("jax",)),
    Check("JAX", "differentiates", "`jax.grad`", jax_differentiates, ("jax",)),
    Check("CuPy", "runs", "yes, tested where there is a GPU", cupy_runs, ("cupy",)),
    Check("array-api-strict", "runs", "yes, all optional parts off", strict_runs, ("array_api_strict",)),
    Check("Dask", "runs", "yes", dask_runs, ("dask",)),
    Check("Cubed", "runs", "yes", cubed_runs, ("cubed",)),
    Check("ndonnx", "runs", "yes", ndonnx_runs, ("ndonnx",)),
    Check("ndonnx", "compiles", "to an ONNX model, run by ONNX Runtime", ndonnx_compiles, ("ndonnx", "onnxruntime")),
]
COLUMNS = ("runs", "compiles", "differentiates")


def missing(check: Check) -> str | None:
    """Why a check cannot run on this machine."""
    for name in check.needs:
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed"
    if "cupy" in check.needs:
        try:
            if importlib.import_module("cupy").cuda.runtime.getDeviceCount() == 0:
                return "there is no GPU"
        except Exception as error:
            return f"there is no GPU that CuPy can use ({error})"
    return None


def table() -> str:
    """The table of the docs, from the list of checks."""
    lines = ["| library | " + " | ".join(COLUMNS) + " |", "| --- " * (1 + len(COLUMNS)) + "|"]
    for library in dict.fromkeys(check.library for check in CHECKS):
        cells = [
            ", ".join(c.how for c in CHECKS if (c.library, c.column) == (library, column)) or "-" for column in COLUMNS
        ]
        lines.append(f"| {library} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run every check that this machine can, then write the table."""
    for check in CHECKS:
        why_not = missing(check)
        if why_not is None:
            check.run()
        print(f"{check.library} {check.column}: {why_not or 'ok'}", flush=True)
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text(table(), encoding="utf-8")


if __name__ == "__main__":
    main()
