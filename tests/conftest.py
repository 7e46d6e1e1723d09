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


@pytest.fixture(autouse=True)
def printing_as_it_was() -> Iterator[None]:
    """Bugs of family D change NumPy's print options for good, and a test may judge them in its own process."""
    usual = np.get_printoptions()
    yield
    np.set_printoptions(**usual)
