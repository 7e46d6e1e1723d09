"""Who tests the tests: known bugs of attention, each an implementation that the suite must convict.

Importing the package registers them; docs/mutants.md says what each is, and what convicts it.
"""

from . import (  # noqa: F401
    _biases,
    _demands,
    _frameworks,
    _gradients,
    _inputs,
    _masks,
    _noises,
    _positions,
    _precisions,
    _softmaxes,
    _states,
    _tiles,
)
from ._base import Attention, Backward, Tiled
from ._mutant import FAMILIES, MUTANTS, Mutant

__all__ = ["FAMILIES", "MUTANTS", "Attention", "Backward", "Mutant", "Tiled"]
