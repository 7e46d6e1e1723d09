"""An implementation under test: a callable, and what it claims."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from ia_core import PositionBias

from ._case import Case
from ._libraries import LIBRARIES, from_library, to_library
from ._tolerance import ARITHMETICS

__all__ = ["FEATURES", "Failure", "Implementation", "Result"]

# What an implementation may claim. The first line is claimed unless the implementer says otherwise.
BASIC = frozenset({"bias", "bias_broadcast", "mask", "scale", "lse", "grouped", "value_width", "batch_axes", "empty"})
FEATURES = BASIC | {
    "grad",
    "bias_grad",
    "position_bias",
    "parameter_grad",
    "lse_grad",
    "double_grad",
    "errors",
    "compile",
    "vmap",
    "wide_bias",
    "batch_invariant",
    "linear_memory",
}
DTYPES = ("float64", "float32", "float16", "bfloat16")
Place = Callable[[str, np.ndarray], Any]


class Failure(AssertionError):
    """A clause does not hold, with what is needed to see why.

    Attributes
    ----------
    text : str
    case : Case or None
        The call that shows it.
    details : dict
        Index, got, wanted, bound and error_in_bounds of the worst element, where elements were compared.

    Examples
    --------
    >>> Failure("it raised", index=(0, 1)).details
    {'index': (0, 1)}
    """

    def __init__(self, text: str, case: Case | None = None, **details: Any) -> None:
        super().__init__(text)
        self.text, self.case, self.details = text, case, details


@dataclasses.dataclass(frozen=True)
class Result:
    """What an implementation returned, as float64, with the dtype it came in."""

    output: np.ndarray
    dtype: str
    lse: Any = None


@dataclasses.dataclass(frozen=True)
class Implementation:
    """A function under test.

    Parameters
    ----------
    fn : callable
        With the signature of :func:`ia_core.indirect_attention`; arguments that the case does not use are not passed.
    name : str
        For the report.
    library : str
        What it takes and returns: one of numpy, torch, jax, cupy, array_api_strict.
    device : str, optional
        Of the arrays it is given.
    dtypes : sequence of str
        Which of float64, float32, float16, bfloat16 it takes; the first one judges semantics.
    layout : str
        BHMD (the reference's) or BMHD.
    supports : collection of str, optional
        Features it claims, out of ``FEATURES``; docs/conformance.md says what each means. What is claimed is tested,
        the rest is reported as not supported. By default bias, bias_broadcast, mask, scale, lse, grouped,
        value_width, batch_axes and empty; for torch and jax also grad and bias_grad.
    deviations : mapping of clause label to reason
        Clauses that are known to fail, as ``IA-S-06``, or in one dtype, as ``IA-S-06[float16]``; one that passes is
        an error.
    arithmetic : mapping of dtype to str
        Where it computes less precisely than docs/spec.md says (IA-P-01 to IA-P-04, which then are deviations to
        declare): ``weights`` rounded to the dtype, ``scores`` rounded too, everything in the dtype's ``own``
        precision, or float64 computed in ``float32``. The other clauses then judge with the bound of that arithmetic.
    few_shapes : bool, optional
        Draw few different shapes, because each costs a compilation; by default for jax.
    most_cases : int, optional
        No clause tries more than so many cases, and the noise laws look at fewer samples; for an implementation that
        takes long for each call.
    vjp : callable, optional
        ``vjp(cotangent, query, key, value, bias=..., ...)`` giving gradients for query, key, value and bias; by
        default the library's automatic differentiation of ``fn``.
    target : str, optional
        What names it on the command line.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit (IA-X-21).

    Examples
    --------
    >>> from ia_core import indirect_attention
    >>> Implementation(indirect_attention, "reference").library
    'numpy'
    """

    fn: Callable[..., Any]
    name: str
    library: str = "numpy"
    device: str | None = None
    dtypes: tuple[str, ...] = ("float64", "float32")
    layout: str = "BHMD"
    supports: Collection[str] | None = None
    deviations: Mapping[str, str] = dataclasses.field(default_factory=dict)
    arithmetic: Mapping[str, str] = dataclasses.field(default_factory=dict)
    few_shapes: bool | None = None
    most_cases: int | None = None
    vjp: Callable[..., Any] | None = None
    target: str = ""
    claims: frozenset[str] = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise TypeError(f"`fn` must be callable; got {type(self.fn).__name__} [IA-X-21]")
        grad = {"grad", "bias_grad"} if self.library in ("torch", "jax") or self.vjp else set()
        supports = BASIC | grad if self.supports is None else frozenset(self.supports)
        object.__setattr__(self, "claims", frozenset(supports))
        object.__setattr__(self, "dtypes", tuple(self.dtypes))
        if self.few_shapes is None:
            object.__setattr__(self, "few_shapes", self.library == "jax")
        if self.most_cases is not None and self.most_cases < 1:
            raise ValueError(f"`most_cases` must be at least 1; got {self.most_cases} [IA-X-21]")
        for name, given, known in (
            ("library", (self.library,), tuple(LIBRARIES)),
            ("dtypes", self.dtypes, DTYPES),
            ("layout", (self.layout,), ("BHMD", "BMHD")),
            ("supports", sorted(supports), sorted(FEATURES)),
            ("arithmetic", tuple(self.arithmetic), DTYPES),
            ("arithmetic", tuple(self.arithmetic.values()), ARITHMETICS),
        ):
            unknown = [item for item in given if item not in known]
            if unknown or (not given and name == "dtypes"):
                raise ValueError(f"`{name}` must be of {', '.join(known)}; got {', '.join(unknown)} [IA-X-21]")

    def run(self, case: Case, *, return_lse: bool = False, strided: bool = False, place: Place | None = None) -> Result:
        """Call the function on a case and check the form of what comes back (IA-F-10).

        ``place(name, array)`` may give the library's array for one of query, key, value, bias and mask, laid out in
        memory as a clause wants it; where it gives None the array is placed as usual.
        """
        arrays, keywords = self.arguments(case, strided=strided, place=place)
        if return_lse:
            keywords["return_lse"] = True
        try:
            returned = self.fn(*arrays, **keywords)
        except (Exception, SystemExit) as error:
            raise Failure(f"it raised {type(error).__name__}: {_first_line(error)}", case) from error
        if not return_lse:
            return Result(*self.received(returned, case, "output", case.output_shape))
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise Failure(f"return_lse=True must give a pair (output, lse); got {type(returned).__name__}", case)
        lse, _ = self.received(returned[1], case, "lse", case.output_shape[:-1], layout=False)
        return Result(*self.received(returned[0], case, "output", case.output_shape), lse)

    def arguments(
        self, case: Case, *, strided: bool = False, place: Place | None = None
    ) -> tuple[list[Any], dict[str, Any]]:
        """The positional and keyword arguments, in the implementation's library, device and layout."""

        def put(name: str, array: np.ndarray, usual: Callable[[np.ndarray], Any]) -> Any:
            placed = None if place is None else place(name, array)
            return usual(array) if placed is None else placed

        usual = self._place_strided if strided else self._place
        arrays = [put(name, self._swap(getattr(case, name)), usual) for name in ("query", "key", "value")]
        keywords: dict[str, Any] = {}
        if isinstance(case.bias, PositionBias):
            keywords["bias"] = _map(case.bias, self._place)
        elif case.bias is not None:
            keywords["bias"] = put("bias", self._spread(case.bias, case), self._place)
        if case.mask is not None:
            keywords["mask"] = put("mask", self._spread(case.mask, case), self._place)
        if case.scale is not None:
            keywords["scale"] = case.scale
        return arrays, keywords

    def received(
        self, array: Any, case: Case, what: str, shape: tuple[int, ...], *, layout: bool = True
    ) -> tuple[np.ndarray, str]:
        """A returned array as float64 and its dtype's name, in the reference's layout."""
        if array is None or not hasattr(array, "dtype") or not hasattr(array, "shape"):
            raise Failure(f"its {what} must be an array of shape {shape}; got {type(array).__name__}", case)
        values, dtype = from_library(array)
        values = self._swap(values) if layout and values.ndim >= 3 else values
        if values.shape != shape:
            raise Failure(f"its {what} must have shape {shape}; got {values.shape}", case)
        return values, dtype

    def _spread(self, array: np.ndarray, case: Case) -> np.ndarray:
        if "bias_broadcast" in self.claims:
            return array
        return np.array(np.broadcast_to(array, case.scores_shape))

    def _place(self, array: np.ndarray) -> Any:
        return to_library(np.array(array, order="C"), self.library, self.device)

    def _place_strided(self, array: np.ndarray) -> Any:
        """Every second element of a larger array; nan stands between, where nobody may read."""
        larger = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
        larger[..., ::2] = array
        if self.library == "numpy":
            return larger[..., ::2]
        return self._place(larger)[..., ::2]

    def _swap(self, array: np.ndarray) -> np.ndarray:
        return np.swapaxes(array, -3, -2) if self.layout == "BMHD" else array


def _map(tree: Any, place: Callable[[np.ndarray], Any]) -> Any:
    """A PositionBias with every array placed."""
    return type(tree)(*(_map(leaf, place) if isinstance(leaf, tuple) else place(leaf) for leaf in tree))


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300]
