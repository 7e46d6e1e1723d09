"""Family T: what libraries do to functions - compile them, map them over an axis, differentiate the compiled one."""

from __future__ import annotations

from typing import Any

import numpy as np

from ia_core import LinearOffset, PositionBias

from ._calls import QKV, asked, compiled, compiled_gradients, run_compiled
from ._case import Case
from ._clause import check_elements, clause, conforms, truth_of
from ._gradients import cotangent_of
from ._implementation import Implementation
from ._libraries import numpy_dtype, vmap
from ._truth import gradient_truth

__all__: list[str] = []

LIBRARIES = {"torch", "jax"}


def plain_case(implementation: Implementation, seed: int, M: int = 3, N: int = 5) -> Case:
    """A case with everything that is claimed, and the same structure for every seed: a compilation is dear."""
    claims, dtype = implementation.claims, implementation.dtypes[0]
    rng = np.random.default_rng([7, seed])
    D, H = 4, 4
    Dv = 3 if "value_width" in claims else D
    Hk = 2 if "grouped" in claims else H

    def fill(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(numpy_dtype(dtype))

    mask = rng.random((2, H, M, N)) < 0.6
    mask[..., int(rng.integers(N))] = True
    return Case(
        fill(2, H, M, D),
        fill(2, Hk, N, D),
        fill(2, Hk, N, Dv),
        bias=fill(2, H, M, N) if "bias" in claims else None,
        mask=mask if "mask" in claims else None,
        scale=0.3 if "scale" in claims else None,
        seed=seed,
        arithmetic=implementation.arithmetic.get(dtype, "standard"),
    )


def compiled_conforms(implementation: Implementation, function: Any, *cases: Case) -> None:
    """The compiled function gives the truth of each case, in this order."""
    for case in cases:
        truth, bound = truth_of(case)
        output = run_compiled(implementation, function, case)
        check_elements("output of the compiled function", output, truth.output, bound.output, case)


@clause("IA-T-01", "the compiled function gives the output", needs={"compile"}, libraries=LIBRARIES, fixed=True)
def compiles(implementation: Implementation, _: Case) -> None:
    case = plain_case(implementation, 0)
    one_by_one = [case, case.but(bias=None, mask=None, scale=None)]
    if "position_bias" in implementation.claims:
        slopes = np.array([0.1, 0.2, 0.3, 0.4], np.float64 if case.dtype == "float64" else np.float32)
        one_by_one.append(case.but(bias=PositionBias(LinearOffset(slopes), np.arange(3), np.arange(5))))
    for one in one_by_one:
        compiled_conforms(implementation, compiled(implementation), one)


@clause(
    "IA-T-02", "a compiled function may be called in another shape", needs={"compile"}, libraries=LIBRARIES, fixed=True
)
def compiled_in_another_shape(implementation: Implementation, _: Case) -> None:
    first, longer, wider = (plain_case(implementation, n, *size) for n, size in enumerate([(3, 5), (3, 8), (6, 2)]))
    compiled_conforms(implementation, compiled(implementation), first, longer, wider, first)


@clause(
    "IA-T-03",
    "a compiled function may be called with another scale and another mask",
    needs={"compile", "mask", "scale"},
    libraries=LIBRARIES,
    fixed=True,
)
def compiled_with_another_scale(implementation: Implementation, _: Case) -> None:
    first, second = (plain_case(implementation, n) for n in range(2))
    others = [first.but(scale=1.5), first.but(mask=second.mask), second, first.but(mask=None), first]
    compiled_conforms(implementation, compiled(implementation), first, *others)


@clause(
    "IA-T-04",
    "the function mapped over an axis gives the output of each",
    needs={"vmap"},
    libraries=LIBRARIES,
    fixed=True,
)
def mapped(implementation: Implementation, _: Case) -> None:
    cases = [plain_case(implementation, n) for n in range(3)]
    conforms(implementation, cases[0])
    for shared in ((), ("value",), ("key", "value", "mask")):
        same = [one.but(**{name: getattr(cases[0], name) for name in shared}) for one in cases]
        mapped_conforms(implementation, same, set(shared))


def mapped_conforms(implementation: Implementation, cases: list[Case], shared: set[str]) -> None:
    """Mapped over an axis put in as the second of query and the first of the rest; ``shared`` arrays have none."""
    names = [name for name in (*QKV, "bias", "mask") if getattr(cases[0], name) is not None]
    axes = tuple(None if name in shared else int(name == "query") for name in names)
    inputs = []
    for name, axis in zip(names, axes, strict=True):
        swap = implementation._swap if name in QKV else np.asarray
        arrays = [swap(getattr(case, name)) for case in cases]
        inputs.append(implementation._place(arrays[0] if axis is None else np.stack(arrays, axis=axis)))

    def one(*arrays: Any) -> Any:
        keywords = dict(zip(names[3:], arrays[3:], strict=True))
        keywords |= {} if cases[0].scale is None else {"scale": cases[0].scale}
        return implementation.fn(*arrays[:3], **keywords)

    many = asked(cases[0], lambda: vmap(implementation.library, one, axes)(*inputs), "mapped function")
    shape = (len(cases), *cases[0].output_shape)
    outputs = implementation.received(many, cases[0], "output of the mapped function", shape)[0]
    for n, case in enumerate(cases):
        truth, bound = truth_of(case)
        check_elements(f"output {n} of the mapped function", outputs[n], truth.output, bound.output, case)


@clause(
    "IA-T-05",
    "the gradient of the compiled function is the gradient",
    needs={"compile", "grad"},
    libraries=LIBRARIES,
    fixed=True,
)
def compiled_gradient(implementation: Implementation, _: Case) -> None:
    case = plain_case(implementation, 0)
    do = cotangent_of(case)
    exact, bounds = gradient_truth(case, do)
    for name, got in compiled_gradients(implementation, case, do).items():
        what = f"gradient of {name} of the compiled function"
        check_elements(what, got, getattr(exact, name), bounds[name], case)
