"""Conformance: is a function indirect attention? Judged clause by clause, against an oracle in ball arithmetic.

Clauses are stated in docs/spec.md. Importing this package registers them; it needs the extra ``conformance``.
"""

from . import (  # noqa: F401
    _bad_input,
    _bias_clauses,
    _determinism,
    _equivalences,
    _forward,
    _gradients,
    _layout,
    _noise_laws,
    _precision,
    _resources,
    _special,
    _transforms,
)
from ._case import Case, cases
from ._clause import CLAUSES, FAMILIES, Clause
from ._implementation import FEATURES, Failure, Implementation
from ._verdict import OUTCOMES, PROFILES, Verdict, judge

__all__ = [
    "CLAUSES",
    "FAMILIES",
    "FEATURES",
    "OUTCOMES",
    "PROFILES",
    "Case",
    "Clause",
    "Failure",
    "Implementation",
    "Verdict",
    "cases",
    "judge",
]
