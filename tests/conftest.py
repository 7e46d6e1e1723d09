"""What all tests share."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Each test compiles for itself: torch.compile gives up after it has compiled one function for eight shapes."""
    yield
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None:
        dynamo.reset()


PRINTING, ERRORS = np.get_printoptions(), np.geterr()


@pytest.fixture(autouse=True)
def numpy_as_it_was() -> Iterator[None]:
    """Bugs of family D change NumPy's settings for good, and a test or a fixture of a module may judge them here."""
    _set_numpy()
    yield
    _set_numpy()


def _set_numpy() -> None:
    np.set_printoptions(**PRINTING)
    np.seterr(**ERRORS)
